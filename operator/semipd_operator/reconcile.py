"""Brings one service's objects to what its specification says. Level-based: it looks at what is, whatever happened.

Order of operations: read, judge, apply, delete what is no longer wanted, watch the agents, show the status.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from enum import IntEnum

from semipd_operator.answers import ApiRefused
from semipd_operator.api.v1alpha1.resource import (
    KIND,
    InvalidSpec,
    Reading,
    SemiPDService,
    parse_status,
    read,
)
from semipd_operator.children import Children, Reach
from semipd_operator.claims import Claims
from semipd_operator.converge import Outcome, converge
from semipd_operator.informer import Informer
from semipd_operator.inquiry import Inquiry, unbound_claims
from semipd_operator.kube import Kube
from semipd_operator.poller import AgentPoller, Watch
from semipd_operator.reasons import EventReason, SpecReason
from semipd_operator.render import (
    HPA,
    SCALED_OBJECT,
    Kind,
    Object,
    names,
)
from semipd_operator.render.configmap import agent_config
from semipd_operator.render.pod import overruled
from semipd_operator.render.service import url
from semipd_operator.settings import Settings
from semipd_operator.status import AutoscalerView, Observed, PodView, Problem
from semipd_operator.status.events import Event
from semipd_operator.status.model import resolved_revision
from semipd_operator.status.refusals import refusal, stalled, unexposed
from semipd_operator.status.scaling import autoscaler_view
from semipd_operator.status.summarise import deleting, rejected
from semipd_operator.status_writer import StatusWriter
from semipd_operator.workqueue import Key

log = logging.getLogger(__name__)


PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS = 30.0, 2.0
"""For an API server that refuses what it may take in a moment; the second, where there is no Deployment yet and so no
Ready to take back: after a second try."""
TRIES = 3
"""Of one look, where someone else writes our objects at the same time; then it waits, longer each time."""


class Next(IntEnum):
    """When to look at a service again even if no watch tells of it."""

    NEWS = 0
    """Not before."""
    LATER = 1
    """Something is on its way that no watch tells of."""
    RETRY = 2
    """Something failed."""


class Reconciler:
    def __init__(
        self,
        kube: Kube,
        settings: Settings,
        informer: Informer,
        poller: AgentPoller,
        statuses: StatusWriter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._settings = kube, settings
        self._informer, self._poller, self._statuses = informer, poller, statuses
        self._claims = Claims(kube, settings.name, clock, lambda: kube.clock_ahead)
        self._inquiry = Inquiry(kube, clock, lambda: kube.clock_ahead)
        self._children = Children(kube, informer)
        self._clock = clock
        self._refused_since: dict[Key, float] = {}

    async def reconcile(self, key: Key) -> Next:
        """Raises `ApiRefused` and `ApiAway`."""
        obj = self._informer.get(KIND, key.namespace, key.name)
        if obj is None or obj["metadata"].get("deletionTimestamp"):
            # Garbage collection takes the children; an apply now would bring them back.
            self.forget(key)
            if obj is None:
                self._statuses.gone(key)
            else:
                await self._say_deleting(key, obj)
            return Next.NEWS
        try:
            reading = read(obj)
        except InvalidSpec as invalid:
            await self._reject(key, obj, invalid)
            return Next.NEWS
        for _ in range(TRIES):
            config_map = self._config_map(reading.service)
            if other := await self._claims.other(key, config_map):
                await self._yield(key, reading.service, other)
                return Next.RETRY
            judged = config_map["metadata"]["resourceVersion"] if config_map else ""
            revision = resolved_revision(reading.service, parse_status(obj))
            outcome = await converge(
                self._children, self._settings, key, reading, model_revision=revision, judged=judged
            )
            if not outcome.overtaken:
                break
        if outcome.signed:
            self._claims.hold(key)
        outcome = self._patient(key, outcome)
        if outcome.overtaken and outcome.problem and outcome.problem.for_now:
            return Next.RETRY
        if not outcome.template_hash:
            outcome = replace(outcome, template_hash=parse_status(obj).template_hash)
        settled = await self.update_status(key, obj, reading, outcome)
        return Next.RETRY if outcome.again else Next.NEWS if settled else Next.LATER

    def _patient(self, key: Key, outcome: Outcome) -> Outcome:
        """A server in trouble for longer than our patience is a problem, and before that none of Ready's."""
        problem = outcome.problem
        if problem is None or not problem.for_now:
            self._refused_since.pop(key, None)
            return outcome
        since = self._refused_since.setdefault(key, self._clock())
        patience = PATIENCE_SECONDS if self._informer.get("Deployment", *key) else FIRST_PATIENCE_SECONDS
        return replace(outcome, problem=replace(problem, for_now=self._clock() - since < patience))

    def use(self, settings: Settings) -> None:
        """From the next reconcile on."""
        self._settings = settings

    def _config_map(self, service: SemiPDService) -> Object | None:
        """The one that bears the name of the operator that looks after the service."""
        namespace, name = service.metadata.namespace, names.config_map_name(service)
        live = self._informer.get("ConfigMap", namespace, name)
        return live if live and names.controller(live) == service.metadata.uid else None

    async def _yield(self, key: Key, service: SemiPDService, other: str) -> None:
        """Not a word in the status: the other one writes it."""
        self._poller.forget(key)
        self._statuses.forget(key)
        if self._claims.news(key, other):
            message = f"operator {other} looks after this service; operator {self._settings.name} leaves it alone"
            log.warning("%s: %s", key, message)
            await self._statuses.tell(service, Event(EventReason.OPERATOR_CONFLICT, message))

    def forget(self, key: Key) -> None:
        self._claims.forget(key)
        self._poller.forget(key)
        self._statuses.forget(key)
        self._children.forget(key)
        self._refused_since.pop(key, None)

    async def update_status(self, key: Key, obj: Object, reading: Reading, outcome: Outcome) -> bool:
        """Whether the watches will tell of all that is to come; of a pod that the kubelet makes, and of a node that has
        not answered, they say nothing."""
        service, now = reading.service, datetime.now(UTC)
        meta, selector = service.metadata, names.selector_string(service)
        serving = [uid for uid, agent in self._poller.views(key).items() if agent.serves_since]
        seen = await self._inquiry.look(self._informer.pods(key), now, serving)
        views = tuple(view for view in seen if not view.stranger)
        self._statuses.observe(
            key,
            Observed(
                service=service,
                now=now,
                pods=views,
                preempted=self._informer.preempted(key),
                ahead=self._kube.clock_ahead,
                template_hash=outcome.template_hash,
                url=url(service),
                selector=selector,
                problem=_unread(reading, outcome) or outcome.problem,
                ignored=reading.ignored,
                refusal=refusal(self._informer.get("Deployment", *key)),
                stalled=stalled(self._informer.get("Deployment", *key)),
                unexposed=unexposed(self._informer.get("Service", *key)),
                strangers=tuple(f"{view.name} (of {view.stranger})" for view in seen if view.stranger),
                additions=self._informer.additions(key),
                foreign_scaler=self._informer.foreign_scaler(key),
                lacking=(*(_lack(kind, outcome.reach) for kind in outcome.lacking), *overruled(service)),
                autoscaler=await self._autoscaler(service, outcome.reach),
            ),
        )
        pushes = not service.spec.paused and outcome.problem is None
        tokens = self._settings.tokens(meta.namespace, meta.name, meta.uid)
        self._poller.watch(key, Watch(views, tokens, agent_config(service) if pushes else None))
        await self._statuses.publish(key)
        return not any(_stands_still(view) or view.node_owes for view in views)

    async def _autoscaler(self, service: SemiPDService, reach: Reach) -> AutoscalerView | None:
        scaling, meta = service.spec.autoscaling, service.metadata
        if scaling is None:
            return None
        by_keda = scaling.keda is not None
        kind = SCALED_OBJECT if by_keda else HPA
        live = reach.live.get(kind)
        own = live if live and names.controller(live) == meta.uid else None
        known = kind in reach.live or kind in reach.refusals
        view = autoscaler_view(kind.kind, own, known=known, refusal=reach.refusals.get(kind, ""))
        if by_keda or view.active:
            return view
        ours = self._settings.metrics_api
        server = await self._inquiry.metrics_server(f"{ours.namespace}/{ours.service}" if ours else "")
        return replace(view, metrics_served=server.served, metrics_owner=server.owner)

    async def _say_deleting(self, key: Key, obj: Object) -> None:
        """Only where it stays for now: else what was shown last would stand as if it served."""
        if finalizers := ", ".join(obj["metadata"].get("finalizers") or ()):
            previous, meta = parse_status(obj), _bare(obj)
            status = deleting(previous, meta.metadata.generation, f"finalizers {finalizers}", datetime.now(UTC))
            if status != previous:
                try:
                    await self._statuses.write(meta, status)
                except ApiRefused as refused:
                    if refused.status not in (404, 409):  # it went meanwhile
                        raise

    async def _reject(self, key: Key, obj: Object, invalid: InvalidSpec) -> None:
        """A specification of which this version can make nothing: say so, touch nothing."""
        self.forget(key)
        previous = parse_status(obj)
        meta = _bare(obj)
        status = rejected(previous, meta.metadata.generation, str(invalid), datetime.now(UTC))
        if status != previous:
            await self._statuses.write(meta, status)


def _bare(obj: Object) -> SemiPDService:
    """Its metadata, with a specification that stands for none."""
    return SemiPDService.parse({"metadata": obj["metadata"], "spec": {"model": {"uri": "file:///unknown"}}})


def _unread(reading: Reading, outcome: Outcome) -> Problem | None:
    """What the specification says in words of another version. The rest of it is in force."""
    if not reading.errors:
        return None
    told = [*reading.errors, *([outcome.problem.message] if outcome.problem else [])]
    return Problem(SpecReason.INVALID_SPEC, "; ".join(told))


def _lack(kind: Kind, reach: Reach) -> str:
    why = reach.refusals.get(kind) or f"the cluster does not know {kind.api_version}"
    return f"no {kind.kind}: {why}"


def _stands_still(view: PodView) -> bool:
    """Whether the kubelet, a scheduler or a node may have something to say of it; loading, the agent speaks for it."""
    waits = view.preparing_since is not None or view.unseen_since is not None or (bool(view.node) and not view.ready)
    return view.stays and (waits or bool(unbound_claims(view)))
