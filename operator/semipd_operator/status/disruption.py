"""A pod that the cluster takes away: preempted, evicted, drained, tainted. It is gone in a moment, and its successor
says only what it lacks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from semipd_operator.reasons import PodTrouble
from semipd_operator.status.containers import condition_of, time_of
from semipd_operator.status.observed import Disruption, PodView, Problem

_SUCCEEDED_WITHIN = timedelta(seconds=60)
"""A ReplicaSet makes another pod as soon as one is being deleted."""


_TOLD = {
    "PreemptionByScheduler": "was preempted for a pod of higher priority",
    "DeletionByTaintManager": "was evicted by a NoExecute taint of its node",
    "EvictionByEvictionAPI": "was evicted, as a drain of its node does it",
    "DeletionByPodGC": "was deleted with its node",
    "TerminationByKubelet": "was ended by its node",
}


def disruption(pod: dict[str, Any], status: dict[str, Any]) -> Disruption | None:
    """Kubernetes: Pod disruption conditions. Whoever takes it away says so on the pod before it deletes it."""
    said = condition_of(status, "DisruptionTarget")
    if said.get("status") != "True":
        return None
    at = _deleted_at(pod["metadata"]) or time_of(said.get("lastTransitionTime"))
    return Disruption(said.get("reason", ""), said.get("message", ""), at)


def told(pods: Iterable[PodView]) -> str:
    """Of each that is taken away, by whom and in whose words; empty: none is."""
    return "; ".join(
        f"pod {pod.name} {_TOLD.get(d.reason, 'was taken away')} ({d.reason}): {d.words}"
        for pod in pods
        if (d := pod.disruption) is not None
    )


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
