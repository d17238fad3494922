"""The few requests that the operator makes of the API server: read, server-side apply, create, delete.

Paths are built from a table of the kinds in use, so that no discovery is needed. It knows no meaning of the objects;
`answers` says what comes back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from kubernetes.aio import client as kube_client
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError, NotFoundError

from semipd_operator.answers import ApiAway, ApiRefused, Object, Places, check, words_of
from semipd_operator.api.v1alpha1.resource import API_VERSION, KIND, PLURAL, SemiPDService
from semipd_operator.settings import MANAGER

_PLURALS = {
    KIND: PLURAL,
    "Deployment": "deployments",
    "Service": "services",
    "ConfigMap": "configmaps",
    "Pod": "pods",
    "Node": "nodes",
    "Event": "events",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PodMonitor": "podmonitors",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "ScaledObject": "scaledobjects",
    "Secret": "secrets",
    "APIService": "apiservices",
    "SubjectAccessReview": "subjectaccessreviews",
    "ClusterRole": "clusterroles",
    "Lease": "leases",
    "EndpointSlice": "endpointslices",
    "Endpoints": "endpoints",
}
_OBJECT = (("metadata", "name"), ("metadata", "resourceVersion"))
_REVIEW = (("status", "allowed"),)
"""A review is kept nowhere and has no name."""
_LIST = (("items",), ("metadata", "resourceVersion"))
_KINDS = (("resources",),)
_REQUEST_SECONDS = 30.0
_DISCOVERY_SECONDS = {True: 60.0, False: 10.0}
_PAGE = 500
_FARTHEST_CLOCK = timedelta(days=7)
"""Farther apart are no two clocks of one cluster, whose tokens would be over: somebody wrote a date of his own."""
_NO_OBJECTS = "1"
"""The version of a store before its first object."""


class Kube:
    """Every request raises `ApiRefused` or `ApiAway`, and nothing else."""

    def __init__(self, api: ApiClient) -> None:
        self._client = DynamicClient(api)  # type: ignore[no-untyped-call]  # not awaited: that would start discovery
        self._known_groups: dict[str, tuple[float, bool]] = {}
        self.clock_ahead = timedelta()
        """How far the API server's clock is ahead of ours, to a second; rather too little than too much."""

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """None if there is no such object, or no such kind."""
        try:
            return await self._request("get", _path(api_version, kind, namespace, name), _OBJECT)
        except ApiRefused as refused:
            if refused.status == 404:
                return None
            raise

    async def events(self, namespace: str, uid: str) -> list[Object]:
        """The events about one object: what its controllers and the kubelet say of it."""
        return await self._events(namespace, f"involvedObject.uid={uid}")

    async def claim_events(self, namespace: str, claim: str) -> list[Object]:
        """The events about a PersistentVolumeClaim, whose uid nobody need know."""
        return await self._events(namespace, f"involvedObject.kind=PersistentVolumeClaim,involvedObject.name={claim}")

    async def _events(self, namespace: str, about: str) -> list[Object]:
        path = _path("v1", "Event", namespace)
        page = await self._request("get", path, _LIST, field_selector=about, limit=_PAGE)
        items: list[Object] = page["items"]
        return items

    async def some_nodes(self) -> list[Object]:
        """One page: of a cluster with more nodes, some."""
        page = await self._request("get", _path("v1", "Node", ""), _LIST, limit=_PAGE)
        items: list[Object] = page["items"]
        return items

    async def list(
        self, api_version: str, kind: str, namespace: str = "", selector: str = "", *, newest: bool = False
    ) -> tuple[list[Object], int]:
        """All objects of a kind, page by page, and the version of the list. An empty namespace is all of them.

        May be some seconds old, unless the `newest` is asked for: the API server answers from its memory, which costs
        it little.
        """
        items: list[Object] = []
        token = None
        while True:
            page = await self._request(
                "get",
                _path(api_version, kind, namespace),
                _LIST,
                label_selector=selector or None,
                limit=_PAGE,
                _continue=token,
                resource_version=None if token or newest else "0",
            )
            items += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return items, int(page["metadata"]["resourceVersion"])

    async def apply(self, obj: Object) -> Object:
        """Server-side apply of everything that the object names; fields that others added are left alone."""
        return await self._apply(_path_of(obj), obj)

    async def apply_to(self, obj: Object, live: Object | None) -> Object:
        """The same, and only to what was read: to that version of that object, or, None, where there is none.

        Anything else is a conflict (409), and nothing is changed or made. Not by POST: what that made would be kept in
        place by its own entry in `managedFields` when a later apply leaves it out.
        """
        read = {} if live is None else live["metadata"]
        # A version alone makes anew what is gone; only a uid does not. A version that is no object's asks for none.
        precondition = {"resourceVersion": read.get("resourceVersion", _NO_OBJECTS)}
        precondition |= {"uid": read["uid"]} if read else {}
        return await self._apply(_path_of(obj), {**obj, "metadata": {**obj["metadata"], **precondition}})

    async def apply_status(self, service: SemiPDService, status: Object) -> Object:
        """The uid is a precondition: a service of the same name that came later is not touched (409)."""
        meta = service.metadata
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "status": status,
        }
        return await self._apply(_path(API_VERSION, KIND, meta.namespace, meta.name) + "/status", body)

    async def delete(self, api_version: str, kind: str, namespace: str, name: str, uid: str, version: str = "") -> bool:
        """Only the object with this uid, and this version if one is given; one that is gone or changed is no error.
        False: it is another one, or was changed."""
        try:
            path = _path(api_version, kind, namespace, name)
            preconditions = {"uid": uid} | ({"resourceVersion": version} if version else {})
            await self._request("delete", path, body={"preconditions": preconditions})
        except ApiRefused as refused:
            if refused.status != 404 and not refused.outdated:
                raise
            return refused.status == 404
        return True

    async def knows(self, api_version: str, kind: str) -> bool:
        """Whether the cluster serves a kind; asked again every minute, and sooner while it does not."""
        asked, known = self._known_groups.get(api_version, (float("-inf"), False))
        if time.monotonic() - asked > _DISCOVERY_SECONDS[known]:
            try:
                served = await self._request("get", f"/apis/{api_version}", _KINDS)
                known = any(resource["kind"] == kind for resource in served["resources"])
            except ApiRefused as refused:
                if refused.status not in (403, 404):
                    raise
                known = False
            self._known_groups[api_version] = (time.monotonic(), known)
        return known

    def forget_discovery(self) -> None:
        """Ask again at the next `knows`."""
        self._known_groups.clear()

    async def serves(self, api_version: str) -> bool:
        """Whether a group version answers now; an aggregated one may be registered and yet be away."""
        try:
            await self._request("get", f"/apis/{api_version}")
        except ApiRefused as refused:
            if refused.status not in (403, 404, 503):
                raise
            return False
        return True

    async def merge(self, api_version: str, kind: str, namespace: str, name: str, changes: Object) -> Object:
        """JSON merge patch: an object that is gone is not made anew, unlike by an apply."""
        path = _path(api_version, kind, namespace, name)
        return await self._request("patch", path, _OBJECT, body=changes, content_type="application/merge-patch+json")

    async def create(self, api_version: str, kind: str, namespace: str, body: Object) -> Object:
        holds = _REVIEW if kind == "SubjectAccessReview" else _OBJECT
        return await self._request("post", _path(api_version, kind, namespace), holds, body=body)

    async def _apply(self, path: str, body: Object) -> Object:
        return await self._request(
            "patch",
            path,
            _OBJECT,
            body=body,
            content_type="application/apply-patch+yaml",
            field_manager=MANAGER,
            force_conflicts=True,
        )

    async def _request(self, method: str, path: str, holds: Places = (), **options: Any) -> Object:
        """`holds`: places that any answer to this request has; what lacks one comes from something else."""
        try:
            response = await self._client.request(
                method, path, serialize=False, _request_timeout=_REQUEST_SECONDS, **options
            )
            self._compare_clocks(response.headers.get("Date", ""))
            answer: Object = await response.json()
            check(answer, holds)
            return answer
        except NotFoundError as error:
            raise ApiRefused(404, words_of(error)) from error
        except DynamicApiError as error:
            raise ApiRefused(int(error.status or 0), words_of(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:  # ValueError: no JSON
            raise ApiAway(f"the API server does not answer: {type(error).__name__}: {error}") from error

    def _compare_clocks(self, date: str) -> None:
        """A courtesy: whatever stands between us and the server may write a date as it likes, or none."""
        try:
            told = parsedate_to_datetime(date)
        except (ValueError, OverflowError):
            return
        ahead = (told if told.tzinfo else told.replace(tzinfo=UTC)) - datetime.now(UTC)
        if abs(ahead) < _FARTHEST_CLOCK:
            self.clock_ahead = ahead


@asynccontextmanager
async def connect() -> AsyncIterator[Kube]:
    """With the pod's own account, else with KUBECONFIG. Raises `kubernetes`' ConfigException if there is neither."""
    configuration = kube_client.Configuration()
    try:
        kube_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except kube_config.ConfigException:
        await kube_config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    async with ApiClient(configuration) as api:
        yield Kube(api)


def _path_of(obj: Object) -> str:
    meta = obj["metadata"]
    return _path(obj["apiVersion"], obj["kind"], meta.get("namespace", ""), meta["name"])


def _path(api_version: str, kind: str, namespace: str, name: str = "") -> str:
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{_PLURALS[kind]}" + (f"/{name}" if name else "")
