"""What no watch tells and few services need: why the kubelet cannot make a pod, or which probe of it fails, how the
pod's node is, which taints keep it from others, and who serves the external metrics.

Asked for only where there is a question, and not again for a while. All of it is a `courtesy`, so the status is written
all the same. It judges nothing: see `semipd_operator.status`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from semipd_operator import courtesy
from semipd_operator.answers import ApiRefused
from semipd_operator.courtesy import NOT_OURS_TO_KNOW, Answers
from semipd_operator.metricsapi.registration import API_SERVICE, REGISTRATION_API, backend_of
from semipd_operator.pod_times import PodTimes
from semipd_operator.reasons import PodTrouble
from semipd_operator.status.disruption import DRIVEN_OUT
from semipd_operator.status.nodes import NodeView, claim_words, complaint, node_view, wants_gpu
from semipd_operator.status.observed import PodView, Problem
from semipd_operator.status.pods import pod_view
from semipd_operator.status.probes import FailedProbes, asks_for_probes, explained, failed_probes
from semipd_operator.status.scaling import EXTERNAL_METRICS_API
from semipd_operator.status.taints import Taint, TaintedNode, named, tainted, untold, untolerated

Object = dict[str, Any]

ASKED_AFTER_SECONDS = 10.0
"""A pod that the kubelet has been making, or that was not ready, for less needs no explanation."""
_ASKED_AGAIN_SECONDS = 5.0
"""Each change of a service looks at its pods; what the kubelet says changes with its retries."""
_AT_ONCE = 4
"""Pods asked about in one look; the others have their turn in the next."""
_LABELS_SECONDS, _HEALTH_SECONDS = 300.0, 30.0
"""A node is asked again: labels rarely change; whether it is ready is asked for while a pod of it is not."""
_ALL = ""
"""Of nodes."""
_KEPT_SECONDS = 900.0


class Kube(Protocol):
    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None: ...
    async def events(self, namespace: str, uid: str) -> list[Object]: ...
    async def claim_events(self, namespace: str, claim: str) -> list[Object]: ...
    async def some_nodes(self) -> list[Object]: ...
    async def serves(self, api_version: str) -> bool: ...


@dataclass(frozen=True)
class MetricsServer:
    """Who answers for the external metrics."""

    served: bool = True
    owner: str = ""
    """Who is registered, if it is not this operator; empty: nobody, or it is not ours to ask."""


@dataclass(frozen=True)
class _Events:
    """What those of a pod say."""

    complaint: Problem | None = None
    probes: dict[str, FailedProbes] = field(default_factory=dict)
    restarted: tuple[tuple[str, datetime | None], ...] = ()
    """Of the pod's view when they were asked for: they say nothing of a run that ended since."""


class Inquiry:
    def __init__(
        self,
        kube: Kube,
        clock: Callable[[], float] = time.monotonic,
        ahead: Callable[[], timedelta] = timedelta,
    ) -> None:
        """`ahead`: how far the API server's clock is ahead of ours."""
        self._kube, self._clock = kube, clock
        self._events = Answers[_Events](clock)
        """By the pod's uid."""
        self._claims = Answers[str](clock)
        """By ``NAMESPACE/NAME``: what is said of a claim without a volume."""
        self._nodes = Answers[NodeView](clock)
        """By name."""
        self._tainted = Answers[tuple[TaintedNode, ...]](clock)
        """Those that keep pods away, under one name."""
        self._kept_away: dict[str, tuple[str, float]] = {}
        """The scheduler's words of each pod, by uid, for which they were listed last, and when."""
        self._times = PodTimes(ahead)
        self._metrics = MetricsServer()

    async def look(self, pods: Sequence[Object], now: datetime, serving: Collection[str] = ()) -> tuple[PodView, ...]:
        """The pods with what had to be asked for. `serving`: uids of those whose agent says that the engine serves."""
        views = [self._times.by_our_clock(pod, pod_view(pod), now) for pod in pods]
        probed = {view.uid for view in views if asks_for_probes(view, serves=view.uid in serving)}
        made = {view.uid for view in views if _waits(view.preparing_since, now) or _pulls_in_vain(view)}
        stuck = [view for view in views if _ours(view) and view.uid in probed | made]
        # Whoever was asked about longest ago comes first, so the first ones hide nobody.
        stuck.sort(key=lambda view: self._events[view.uid].asked)
        nodes: dict[str, float] = {}
        for pod, view in zip(pods, views, strict=True):
            if view.node and _driven_out(view):
                # What was known a moment ago is from before the taint, and of the pod it is told once.
                old = self._nodes[view.node].answered and not self._driving(pod, view)
                nodes[view.node] = 0.0 if old else _ASKED_AGAIN_SECONDS
            if not view.node or not _ours(view):
                continue
            if not view.ready and _waits(view.ready_since, now):
                nodes[view.node] = min(_HEALTH_SECONDS, nodes.get(view.node, _HEALTH_SECONDS))
            elif wants_gpu(pod):
                nodes.setdefault(view.node, _LABELS_SECONDS)
        by_uid = {pod["metadata"]["uid"]: pod for pod in pods}
        claims = {
            f"{by_uid[view.uid]['metadata']['namespace']}/{claim}"
            for view in views
            if _ours(view)
            for claim in unbound_claims(view)
        }
        kept_away = {
            view.uid: problem.message
            for view in views
            if _ours(view) and (problem := view.problem) is not None and untold(problem)
        }
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(courtesy.PATIENCE_SECONDS):
                await asyncio.gather(
                    *(self._ask_events(by_uid[view.uid], view) for view in stuck[:_AT_ONCE]),
                    *(self._ask_claim(claim) for claim in sorted(claims)[:_AT_ONCE]),
                    *(self._ask_node(name, period) for name, period in nodes.items()),
                    *([self._ask_taints(kept_away)] if kept_away else []),
                )
        self._forget()
        told = (self._told(view, view.uid in made, view.uid in probed) for view in views)
        known = (
            self._with_node(pod, self._with_taints(pod, self._with_claims(pod, view)))
            for pod, view in zip(pods, told, strict=True)
        )
        return tuple(
            replace(view, node_owes=_ours(view) and self._owed(view, nodes, kept_away.get(view.uid))) for view in known
        )

    def _owed(self, view: PodView, nodes: Collection[str], kept_away: str | None) -> bool:
        if kept_away is not None:
            return self._words(view.uid) != kept_away or not self._tainted[_ALL].answered
        return view.node in nodes and not self._nodes[view.node].answered

    def _words(self, uid: str) -> str | None:
        """For which of a pod taints were listed."""
        known = self._kept_away.get(uid)
        return known and known[0]

    def _told(self, view: PodView, made: bool, probed: bool) -> PodView:
        said = self._events[view.uid].value if _ours(view) else None
        if said is None:
            return view
        view = _with_complaint(view, said.complaint) if made else view
        return explained(view, said.probes) if probed else view

    def _with_claims(self, pod: Object, view: PodView) -> PodView:
        """Where some of several claims say why they have no volume, it is these that have none."""
        said = {
            claim: f"claim {claim}: {words}"
            for claim in (unbound_claims(view) if _ours(view) else ())
            if (words := self._claims[f"{pod['metadata']['namespace']}/{claim}"].value)
        }
        changes = {
            name: replace(problem, message="; ".join([*said.values(), problem.message]), detail=",".join(said))
            for name in _UNBOUND
            if said and (problem := getattr(view, name)) and problem.reason == PodTrouble.CLAIM_UNBOUND
        }
        return replace(view, **changes)

    def _with_taints(self, pod: Object, view: PodView) -> PodView:
        nodes = self._tainted[_ALL].value
        if nodes is None or view.problem is None or not untold(view.problem):
            return view
        return replace(view, problem=named(view.problem, pod, nodes))

    def _with_node(self, pod: Object, view: PodView) -> PodView:
        node = self._nodes[view.node].value
        if node is None:
            return view
        if (gone := view.disruption) and _driven_out(view) and (taints := self._driving(pod, view)):
            told = f"{gone.words} ({', '.join(map(str, taints))} of node {view.node})"
            view = replace(view, disruption=replace(gone, words=told))
        sharing = node.gpu_sharing if wants_gpu(pod) else ""
        return replace(view, gpu_sharing=sharing, node_problem=None if view.ready else node.problem)

    def _driving(self, pod: Object, view: PodView) -> tuple[Taint, ...]:
        """The taints of the pod's node, as far as it is known, that drive it out."""
        node = self._nodes[view.node].value
        return untolerated(pod, (one for one in node.taints if one.effect == "NoExecute")) if node else ()

    async def metrics_server(self, own: str) -> MetricsServer:
        """`own`: ``NAMESPACE/SERVICE`` of this operator's; empty: it serves none."""
        async with courtesy.courtesy():
            served = await self._kube.serves(EXTERNAL_METRICS_API)
            self._metrics = replace(self._metrics, served=served)  # as it is by now: others look at the same time
        async with courtesy.courtesy():
            try:
                live = await self._kube.get(REGISTRATION_API, "APIService", "", API_SERVICE)
            except ApiRefused as refused:
                if refused.status not in NOT_OURS_TO_KNOW:
                    raise
                live = None
            backend = "" if live is None else backend_of(live)
            self._metrics = replace(self._metrics, owner="" if own and backend == own else backend)
        return self._metrics

    async def _ask_claim(self, name: str) -> None:
        async def ask() -> str | None:
            return claim_words(await self._kube.claim_events(*name.split("/")))

        if self._claims.age(name) >= _ASKED_AGAIN_SECONDS:
            await self._claims.ask(name, ask)

    async def _ask_events(self, pod: Object, view: PodView) -> None:
        namespace, uid = pod["metadata"]["namespace"], pod["metadata"]["uid"]

        async def ask() -> _Events | None:
            found = await self._kube.events(namespace, uid)
            return _Events(complaint(found, pod), failed_probes(found), view.restarted)

        known = self._events[uid]
        # Not while the last question about it has no answer: an API server in trouble is not asked at each look.
        ended = known.answered and known.value is not None and known.value.restarted != view.restarted
        if ended or self._events.age(uid) >= _ASKED_AGAIN_SECONDS:
            await self._events.ask(uid, ask)

    async def _ask_node(self, name: str, period: float) -> None:
        async def ask() -> NodeView | None:
            return node_view(name, await self._kube.get("v1", "Node", "", name))

        if self._nodes.age(name) >= (period if self._nodes[name].answered else min(period, _HEALTH_SECONDS)):
            await self._nodes.ask(name, ask)

    async def _ask_taints(self, kept_away: dict[str, str]) -> None:
        """Sooner for a pod, or words, that they were not listed for."""

        async def ask() -> tuple[TaintedNode, ...] | None:
            return tainted(await self._kube.some_nodes())

        news = any(self._words(uid) != words for uid, words in kept_away.items())
        if self._tainted.age(_ALL) >= (_ASKED_AGAIN_SECONDS if news else _HEALTH_SECONDS):
            self._kept_away |= {uid: (words, self._clock()) for uid, words in kept_away.items()}
            await self._tainted.ask(_ALL, ask)

    def _forget(self) -> None:
        oldest = self._clock() - _KEPT_SECONDS
        self._times.forget()
        for about in (self._events, self._claims, self._nodes, self._tainted):
            about.forget(oldest)
        for uid in [uid for uid, (_, listed) in self._kept_away.items() if listed <= oldest]:
            del self._kept_away[uid]


def _ours(view: PodView) -> bool:
    """Of another pod nothing is shown."""
    return view.stays and not view.stranger


def _driven_out(view: PodView) -> bool:
    """By a taint of its node, which the controller of taints does not name."""
    return view.disruption is not None and view.disruption.reason == DRIVEN_OUT


_UNBOUND = ("problem", "unseen")
"""Fields of `PodView` that may name claims without a volume."""


def unbound_claims(view: PodView) -> tuple[str, ...]:
    """Whose own events say why they have no volume."""
    waits = [getattr(view, name) for name in _UNBOUND if name == "problem" or view.unseen_since]
    found = next((one for one in waits if one and one.reason == PodTrouble.CLAIM_UNBOUND), None)
    return tuple(claim for claim in found.detail.split(",") if claim) if found else ()


def _pulls_in_vain(view: PodView) -> bool:
    return view.problem is not None and view.problem.reason == PodTrouble.IMAGE_PULL_FAILED


def _with_complaint(view: PodView, complaint: Problem | None) -> PodView:
    """A missing pull Secret is why a registry refuses, which is no more than a suspicion while the image comes."""
    if complaint is None or complaint.reason != PodTrouble.IMAGE_PULL_FAILED:
        return replace(view, complaint=complaint)
    if view.problem is None or not _pulls_in_vain(view):
        return view
    return replace(view, problem=replace(view.problem, message=f"{complaint.message} {view.problem.message}"))


def _waits(since: datetime | None, now: datetime) -> bool:
    return since is not None and (now - since).total_seconds() >= ASKED_AFTER_SECONDS
