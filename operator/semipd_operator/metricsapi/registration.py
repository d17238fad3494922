"""The cluster-wide registration of external.metrics.k8s.io: made by the leader, never taken from anybody.

A cluster has one APIService of that name. It is ours while it names our Service, whatever else is written on it. It is
made only where there is none, while some service scales by it; it is changed and deleted only at the version at which
it was seen to be ours. Helm has no part in it: a template cannot see who else is there at the time that counts.

It is owned by a ClusterRole of the release, so garbage collection takes it away with the release, however that ends. If
somebody else takes the registration over, that ownership is withdrawn, and all that is ours on it: what is theirs must
not go with us.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from semipd_operator.answers import ApiRefused, Object
from semipd_operator.kube import Kube
from semipd_operator.settings import LEASE_API, MANAGER, LeaseName
from semipd_operator.status.scaling import EXTERNAL_METRICS_API

log = logging.getLogger(__name__)

API_SERVICE = ".".join(reversed(EXTERNAL_METRICS_API.split("/")))
REGISTRATION_API = "apiregistration.k8s.io/v1"
_RBAC = "rbac.authorization.k8s.io/v1"
_LABELS = {"app.kubernetes.io/managed-by": MANAGER, "app.kubernetes.io/part-of": "semipd"}


class BelongsToAnother(Exception):
    """Somebody else serves the API. Nothing is amiss: it is only not ours to answer. The message names the owner."""


@dataclass(frozen=True)
class Backend:
    """Our Service, as the APIService names it; the ClusterRole that owns the registration has its name, too."""

    namespace: str
    service: str
    port: int = 443


class Registration:
    def __init__(self, kube: Kube, backend: Backend, wanted: Callable[[], bool | None], annotations: Object) -> None:
        """`wanted`: whether some service scales by the API; None: not known yet."""
        self._kube, self._backend, self._annotations = kube, backend, annotations
        self.wanted = wanted

    async def settle(self, ca: bytes | None) -> None:
        """Registers, renews or withdraws. `ca`: None where another program writes it.

        Raises `BelongsToAnother`, `ApiRefused`.
        """
        live = await self._kube.get(REGISTRATION_API, "APIService", "", API_SERVICE)
        if live is not None and not self._ours(live):
            await self._disown(live, ca)
            raise BelongsToAnother(f"APIService {API_SERVICE} belongs to {backend_of(live)}; it is left alone")
        wanted = self.wanted()
        if live is None:
            if wanted:
                await self._write(self._object(ca, await self._owners()), None)
                log.info("external metrics: registered %s", API_SERVICE)
        elif wanted is False:
            await self._delete(live)
        else:
            wish = self._object(ca, await self._owners())
            if not _covers(live, wish):
                await self._write(wish, live)

    async def withdraw(self) -> None:
        """Deletes the registration if it is ours. Raises `ApiRefused`."""
        live = await self._kube.get(REGISTRATION_API, "APIService", "", API_SERVICE)
        if live is not None and self._ours(live):
            await self._delete(live)

    def _ours(self, live: Object) -> bool:
        backend = live["spec"].get("service") or {}
        return (backend.get("namespace"), backend.get("name")) == (self._backend.namespace, self._backend.service)

    async def _write(self, wish: Object, live: Object | None) -> None:
        """Never over somebody else's, who may be another operator like this one, with the same field manager."""
        try:
            await self._kube.apply_to(wish, live)
        except ApiRefused as refused:
            if refused.status == 409:
                raise BelongsToAnother(f"APIService {API_SERVICE} was changed by another: {refused}") from refused
            raise

    async def _delete(self, live: Object) -> None:
        meta = live["metadata"]
        version = str(meta["resourceVersion"])
        if await self._kube.delete(REGISTRATION_API, "APIService", "", API_SERVICE, meta["uid"], version):
            log.info("external metrics: withdrew %s", API_SERVICE)
        else:  # the next look judges it again
            log.info("external metrics: %s was changed meanwhile, and is not withdrawn", API_SERVICE)

    async def _disown(self, live: Object, ca: bytes | None) -> None:
        if changes := self._left_behind(live, ca):
            changes.setdefault("metadata", {})["resourceVersion"] = live["metadata"]["resourceVersion"]
            await self._kube.merge(REGISTRATION_API, "APIService", "", API_SERVICE, changes)
            log.warning("external metrics: %s took %s over; what was ours is off it", backend_of(live), API_SERVICE)

    def _left_behind(self, live: Object, ca: bytes | None) -> Object:
        """As a merge patch, what of ours is on somebody else's: who takes it over by an apply has only his own fields
        changed. With our release it would go, and by our CA his server would not be believed. Our labels are those of
        each release of ours, whose it may well be: they come off with what only we can have written."""
        meta, gone = live["metadata"], dict[str, Any]()
        references = meta.get("ownerReferences") or []
        others = [each for each in references if (each["kind"], each["name"]) != ("ClusterRole", self._backend.service)]
        if others != references:
            gone["ownerReferences"] = others or None
        if kept := _same(meta.get("annotations"), self._annotations):
            gone["annotations"] = kept
        believed = ca is not None and live["spec"].get("caBundle") == _bundle(ca)
        if (gone or believed) and (kept := _same(meta.get("labels"), _LABELS)):
            gone["labels"] = kept
        changes: Object = {"metadata": gone} if gone else {}
        return changes | ({"spec": {"caBundle": None}} if believed else {})

    async def _owners(self) -> list[Object]:
        role = await self._kube.get(_RBAC, "ClusterRole", "", self._backend.service)
        if role is None:  # not installed by the chart: whoever wrote the rights also cleans up
            return []
        return [
            {"apiVersion": _RBAC, "kind": "ClusterRole", "name": self._backend.service, "uid": role["metadata"]["uid"]}
        ]

    def _object(self, ca: bytes | None, owners: list[Object]) -> Object:
        group, api_version = EXTERNAL_METRICS_API.split("/")
        backend = self._backend
        metadata: Object = {"name": API_SERVICE, "labels": _LABELS}
        metadata |= {"annotations": self._annotations} if self._annotations else {}
        metadata |= {"ownerReferences": owners} if owners else {}
        return {
            "apiVersion": REGISTRATION_API,
            "kind": "APIService",
            "metadata": metadata,
            "spec": {
                "group": group,
                "version": api_version,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "service": {"namespace": backend.namespace, "name": backend.service, "port": backend.port},
                **({} if ca is None else {"caBundle": _bundle(ca)}),
            },
        }


class Door:
    """Leads what comes to our Service to this process: the Service selects no pods, the leader writes its endpoint.

    So followers need not answer, and a node that is lost costs the cluster's discovery one Lease, not a pod eviction.
    """

    def __init__(self, kube: Kube, backend: Backend, lease: LeaseName | None, ip: str, port: int) -> None:
        """`ip`: of this pod; empty: somebody else leads the way."""
        self._kube, self._backend, self._lease, self._ip, self._port = kube, backend, lease, ip, port

    async def open(self) -> None:
        """Raises `ApiRefused`."""
        if not self._ip:
            return
        owners = await self._owners()
        for wish in (self._slice(owners), self._endpoints(owners)):
            meta = wish["metadata"]
            live = await self._kube.get(wish["apiVersion"], wish["kind"], meta["namespace"], meta["name"])
            if live is None or not _covers(live, wish):
                await self._kube.apply(wish)

    async def _owners(self) -> list[Object]:
        """The Lease: the chart makes it and takes it away."""
        if self._lease is None:
            return []
        live = await self._kube.get(LEASE_API, "Lease", self._lease.namespace, self._lease.name)
        if live is None:
            return []
        return [{"apiVersion": LEASE_API, "kind": "Lease", "name": self._lease.name, "uid": live["metadata"]["uid"]}]

    def _slice(self, owners: list[Object]) -> Object:
        family = f"IPv{ipaddress.ip_address(self._ip).version}"
        labels = {
            "kubernetes.io/service-name": self._backend.service,
            "endpointslice.kubernetes.io/managed-by": MANAGER,
        }
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": self._metadata(f"{self._backend.service}-{family.lower()}", labels, owners),
            "addressType": family,
            "endpoints": [{"addresses": [self._ip], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": self._port, "protocol": "TCP"}],
        }

    def _endpoints(self, owners: list[Object]) -> Object:
        """kube-apiserver up to 1.32 judges an APIService by these; nobody is to mirror them into a second slice."""
        unmirrored = {"endpointslice.kubernetes.io/skip-mirror": "true"}
        subset = {"addresses": [{"ip": self._ip}], "ports": [{"name": "https", "port": self._port, "protocol": "TCP"}]}
        return {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": self._metadata(self._backend.service, unmirrored, owners),
            "subsets": [subset],
        }

    def _metadata(self, name: str, labels: Object, owners: list[Object]) -> Object:
        metadata: Object = {"name": name, "namespace": self._backend.namespace, "labels": {**_LABELS, **labels}}
        return metadata | ({"ownerReferences": owners} if owners else {})


def backend_of(live: Object) -> str:
    """The Service behind an APIService."""
    backend = live["spec"].get("service") or {}
    return f"{backend.get('namespace')}/{backend.get('name')}" if backend else "kube-apiserver itself"


def _same(theirs: Object | None, ours: Object) -> Object:
    """What takes those of `ours` out by a merge patch that are in `theirs`."""
    return {key: None for key, value in ours.items() if (theirs or {}).get(key) == value}


def _bundle(ca: bytes) -> str:
    return base64.b64encode(ca).decode()


def _covers(live: Any, wish: Any) -> bool:
    """Whether everything that `wish` names is in `live` already."""
    if isinstance(wish, dict):
        return isinstance(live, dict) and all(key in live and _covers(live[key], value) for key, value in wish.items())
    if isinstance(wish, list):
        same = isinstance(live, list) and len(live) == len(wish)
        return same and all(_covers(one, other) for one, other in zip(live, wish, strict=True))
    return bool(live == wish)
