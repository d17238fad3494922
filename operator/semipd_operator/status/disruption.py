"""A pod that the cluster takes away: preempted, evicted, drained, tainted. It is gone in a moment, and its successor
says only what it lacks. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from semipd_operator.reasons import PodTrouble
from semipd_operator.status.containers import condition_of, time_of
from semipd_operator.status.observed import Disruption, PodView, Problem

_SUCCEEDED_WITHIN = timedelta(seconds=60)
"""A ReplicaSet makes another pod as soon as one is being deleted."""


DRIVEN_OUT = "DeletionByTaintManager"
_TOLD = {
    "PreemptionByScheduler": "preempted for a pod of higher priority",
    DRIVEN_OUT: "evicted by a NoExecute taint of its node",
    "EvictionByEvictionAPI": "evicted, as a drain of its node does it",
    "DeletionByPodGC": "deleted with its node",
    "TerminationByKubelet": "ended by its node",
}
_MOST_NAMES = 3
_ONE_BY_ONE, _WITHIN_SECONDS, _THEN_EVERY_SECONDS = 10, 600.0, 60.0
"""So many events, as client-go's `EventCorrelator` has it, and for so long; then one a minute with all of it."""


def disruption(pod: dict[str, Any], status: dict[str, Any]) -> Disruption | None:
    """Kubernetes: Pod disruption conditions. Whoever takes it away says so on the pod before it deletes it."""
    said = condition_of(status, "DisruptionTarget")
    if said.get("status") != "True":
        return None
    at = _deleted_at(pod["metadata"]) or time_of(said.get("lastTransitionTime"))
    return Disruption(said.get("reason", ""), said.get("message", ""), at)


class Losses:
    """Of which pods that the cluster takes away was told, and when: each once, and no flood for a drain of many."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        """`known`: uids of those that someone else has told of."""
        self._known = frozenset(known)
        self._untold: list[PodView] = []
        self._times: deque[float] = deque()

    def tell(self, pods: Iterable[PodView], now: float) -> str:
        """What is to be said now of `pods`, all of the service's; empty: nothing. `now`: seconds of any clock."""
        gone = [pod for pod in pods if pod.disruption is not None]
        self._untold += [pod for pod in gone if pod.uid not in self._known]
        self._known = frozenset(pod.uid for pod in gone)
        while self._times and now - self._times[0] >= _WITHIN_SECONDS:
            self._times.popleft()
        many = len(self._times) >= _ONE_BY_ONE
        if not self._untold or (many and now - self._times[-1] < _THEN_EVERY_SECONDS):
            return ""
        said, self._untold = told(self._untold), []
        self._times.append(now)
        return f"(combined from similar events): {said}" if many else said


def told(pods: Iterable[PodView]) -> str:
    """Of those that are taken away, by whom and in whose words; empty: none is."""
    groups: dict[str, list[tuple[str, Disruption]]] = {}
    for pod in pods:
        if pod.disruption is not None:
            groups.setdefault(pod.disruption.reason, []).append((pod.name, pod.disruption))
    return "; ".join(_told(reason, group) for reason, group in groups.items())


def _told(reason: str, group: list[tuple[str, Disruption]]) -> str:
    """The words are the first one's, of whom there may be others; so is the node that they may name."""
    what, words = _TOLD.get(reason, "taken away"), group[0][1].words
    if len(group) == 1:
        return f"pod {group[0][0]} was {what} ({reason}): {words}"
    names = ", ".join(name for name, _ in group[:_MOST_NAMES])
    more = f" and {len(group) - _MOST_NAMES} more" if len(group) > _MOST_NAMES else ""
    return f"{len(group)} pods ({names}{more}) were each {what} ({reason}): {words}"


def _deleted_at(meta: dict[str, Any]) -> datetime | None:
    """When it was asked for, by the clock that stamps creations, too: the scheduler may have another."""
    end = time_of(meta.get("deletionTimestamp"))
    return end and end - timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)


def preempted(view: PodView | None) -> tuple[datetime, str, Problem] | None:
    """When, whom and why."""
    took = view.disruption if view is not None else None
    if view is None or took is None or not took.preempts or took.at is None:
        return None
    return took.at, view.name, Problem(PodTrouble.PREEMPTED, f"was preempted: {took.words}")


def of_successor(gone: PodView | None, pod: PodView, problem: Problem) -> Problem:
    """`problem` of a pod that has no node; where `gone` had its place, that is why."""
    took = preempted(gone)
    if problem.reason != PodTrouble.UNSCHEDULABLE or took is None or pod.created_at is None:
        return problem
    at, name, why = took
    if abs(pod.created_at - at) > _SUCCEEDED_WITHIN:
        return problem
    return replace(why, message=f"{problem.message}; {name}, before it, {why.message}", detail=problem.detail)
