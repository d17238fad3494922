"""Brings one service's objects to what its specification says. Level-based: it looks at what is, whatever happened.

Order of operations: read, judge, apply, delete what is no longer wanted, watch the agents, show the status.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from semipd_agent.contract import service_token
from semipd_operator.api.v1alpha1.resource import (
    API_VERSION,
    KIND,
    InvalidSpec,
    SemiPDService,
    dump_status,
    parse_status,
)
from semipd_operator.fleet import Fleet, Watch
from semipd_operator.kube import ApiRefused, Kube
from semipd_operator.metrics import APPLIES
from semipd_operator.publish import Publisher
from semipd_operator.reasons import Reason
from semipd_operator.render import Kind, Known, Object, Rendered, names, render
from semipd_operator.render.autoscaler import HPA_API, KEDA_API
from semipd_operator.render.configmap import agent_config
from semipd_operator.render.podmonitor import PROMETHEUS_API
from semipd_operator.render.service import url
from semipd_operator.settings import Settings
from semipd_operator.status import AutoscalerView, Observed, Problem
from semipd_operator.status.pods import pod_view
from semipd_operator.status.rejected import rejected
from semipd_operator.status.scaling import EXTERNAL_METRICS_API, autoscaler_view
from semipd_operator.workqueue import Key

log = logging.getLogger(__name__)


class Blocked(Exception):
    """The specification cannot be put in force. `again`: retrying may help without a change of it."""

    def __init__(self, problem: Problem, *, again: bool) -> None:
        super().__init__(problem.message)
        self.problem, self.again = problem, again


class Reconciler:
    def __init__(self, kube: Kube, settings: Settings, fleet: Fleet, publisher: Publisher) -> None:
        self._kube, self._settings, self._fleet, self._publisher = kube, settings, fleet, publisher
        self._applied: dict[tuple[Key, str], tuple[str, str]] = {}
        """By kind: digest of what was applied last, and the resource version that came of it."""

    async def reconcile(self, key: Key) -> bool:
        """Whether to come back even if nothing happens. Raises `ApiRefused` and connection errors."""
        obj = await self._kube.get(API_VERSION, KIND, key.namespace, key.name)
        if obj is None or obj["metadata"].get("deletionTimestamp"):
            # Garbage collection takes the children; an apply now would bring them back.
            self.forget(key)
            return False
        try:
            service = SemiPDService.parse(obj)
        except InvalidSpec as invalid:
            await self._reject(key, obj, invalid)
            return False
        live = await self._own_deployment(service)
        problem, again = None, False
        if service.spec.paused:
            template_hash = _live_template_hash(live)
        else:
            rendered = render(
                service,
                self._settings,
                live_deployment=live,
                known=await self._known(),
            )
            template_hash = rendered.template_hash
            try:
                await self._put_in_force(key, service, rendered)
            except Blocked as blocked:
                problem, again = blocked.problem, blocked.again
        await self._show(key, obj, service, problem, template_hash)
        return again

    def forget(self, key: Key) -> None:
        self._fleet.forget(key)
        self._publisher.forget(key)
        self._applied = {entry: value for entry, value in self._applied.items() if entry[0] != key}

    def is_own_write(self, key: Key, kind: str, version: str) -> bool:
        """Whether an object's version is what our last apply made: such an event tells nothing new."""
        return self._applied.get((key, kind), ("", ""))[1] == version

    async def _known(self) -> Known:
        return Known(
            pod_monitors=await self._kube.knows(PROMETHEUS_API, "PodMonitor"),
            scaled_objects=await self._kube.knows(KEDA_API, "ScaledObject"),
        )

    async def _own_deployment(self, service: SemiPDService) -> Object | None:
        meta = service.metadata
        live = await self._kube.get("apps/v1", "Deployment", meta.namespace, meta.name)
        return live if live and _controller(live) == meta.uid else None

    async def _put_in_force(self, key: Key, service: SemiPDService, rendered: Rendered) -> None:
        """Raises `Blocked`."""
        meta = service.metadata
        current: list[Object | None] = []
        # All names are checked before anything is applied: a half-made service helps nobody.
        for obj in rendered.objects:
            live = await self._kube.get(obj["apiVersion"], obj["kind"], meta.namespace, obj["metadata"]["name"])
            if live is not None and _controller(live) != meta.uid:
                what = f"{obj['kind']} {obj['metadata']['name']}"
                message = f"{what} exists and does not belong to this SemiPDService: rename one of them or delete it"
                raise Blocked(Problem(Reason.NAME_CONFLICT, message, what.replace(" ", "/")), again=True)
            current.append(live)
        for obj, live in zip(rendered.objects, current, strict=True):
            await self._apply(key, obj, live)
        for kind in rendered.unwanted:
            left = await self._kube.get(kind.api_version, kind.kind, meta.namespace, meta.name)
            if left is not None and _controller(left) == meta.uid:
                await self._kube.delete(kind.api_version, kind.kind, meta.namespace, meta.name, left["metadata"]["uid"])

    async def _apply(self, key: Key, obj: Object, live: Object | None) -> None:
        wanted = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()
        version = live["metadata"]["resourceVersion"] if live else ""
        if live and self._applied.get((key, obj["kind"])) == (wanted, version):
            return
        try:
            result = await self._kube.apply(obj)
        except ApiRefused as refused:
            # The object's own fault. An unknown field comes as 500: server-side apply cannot type the patch.
            invalid = refused.status in (400, 422) or "field not declared in schema" in str(refused)
            reason = Reason.INVALID_POD_TEMPLATE if invalid and obj["kind"] == "Deployment" else Reason.APPLY_FAILED
            message = f"{obj['kind']} {obj['metadata']['name']}: {refused}"
            raise Blocked(Problem(reason, message), again=not invalid) from refused
        APPLIES.labels(obj["kind"]).inc()
        self._applied[key, obj["kind"]] = (wanted, result["metadata"]["resourceVersion"])

    async def _show(
        self, key: Key, obj: Object, service: SemiPDService, problem: Problem | None, template_hash: str
    ) -> None:
        meta, selector = service.metadata, names.selector_string(service)
        pods = await self._kube.list("v1", "Pod", meta.namespace, selector)
        views = tuple(pod_view(pod) for pod in pods)
        self._publisher.observe(
            key,
            Observed(
                service=service,
                now=datetime.now(UTC),
                pods=views,
                template_hash=template_hash,
                url=url(service),
                selector=selector,
                problem=problem,
                autoscaler=await self._autoscaler(service),
                previous=parse_status(obj),
            ),
        )
        pushes = not service.spec.paused and problem is None
        token = service_token(self._settings.key, meta.namespace, meta.name, meta.uid)
        self._fleet.watch(key, Watch(views, token, agent_config(service) if pushes else None))
        await self._publisher.publish(key)

    async def _autoscaler(self, service: SemiPDService) -> AutoscalerView | None:
        scaling, meta = service.spec.autoscaling, service.metadata
        if scaling is None:
            return None
        by_keda = scaling.keda is not None
        kind = Kind(KEDA_API, "ScaledObject") if by_keda else Kind(HPA_API, "HorizontalPodAutoscaler")
        live = await self._kube.get(kind.api_version, kind.kind, meta.namespace, meta.name)
        own = live if live and _controller(live) == meta.uid else None
        view = autoscaler_view(kind.kind, own, known=kind in await self._known())
        if by_keda or view.active:
            return view
        return replace(view, metrics_served=await self._kube.serves(EXTERNAL_METRICS_API))

    async def _reject(self, key: Key, obj: Object, invalid: InvalidSpec) -> None:
        """A specification that this version cannot read: say so, touch nothing."""
        self.forget(key)
        previous = parse_status(obj)
        meta = SemiPDService.parse({"metadata": obj["metadata"], "spec": {"model": {"uri": "file:///unknown"}}})
        status = rejected(previous, meta.metadata.generation, str(invalid), datetime.now(UTC))
        if status != previous:
            await self._kube.apply_status(meta, dump_status(status))


def _controller(obj: dict[str, Any]) -> str:
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference["uid"] for reference in references if reference.get("controller")), "")


def _live_template_hash(live: Object | None) -> str:
    if live is None:
        return ""
    labels = live["spec"]["template"]["metadata"].get("labels") or {}
    return str(labels.get(names.TEMPLATE_HASH_LABEL, ""))
