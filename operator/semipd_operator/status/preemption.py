"""A pod that had to go for one of a higher priority: it is gone in a moment, and its successor says only what it lacks.
Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from semipd_operator.reasons import PodTrouble
from semipd_operator.status.containers import condition_of, time_of
from semipd_operator.status.observed import PodView, Preemption, Problem

_SUCCEEDED_WITHIN = timedelta(seconds=60)
"""A ReplicaSet makes another pod as soon as one is being deleted."""


def preemption(pod: dict[str, Any], status: dict[str, Any]) -> Preemption | None:
    """The scheduler says so on the pod before it deletes it."""
    said = condition_of(status, "DisruptionTarget")
    if said.get("status") != "True" or said.get("reason") != "PreemptionByScheduler":
        return None
    at = _deleted_at(pod["metadata"]) or time_of(said.get("lastTransitionTime"))
    return Preemption(at, said.get("message", "")) if at else None


def _deleted_at(meta: dict[str, Any]) -> datetime | None:
    """When it was asked for, by the clock that stamps creations, too: the scheduler may have another."""
    end = time_of(meta.get("deletionTimestamp"))
    return end and end - timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)


def preempted(view: PodView | None) -> tuple[datetime, str, Problem] | None:
    """When, whom and why."""
    if view is None or view.preempted is None:
        return None
    why = Problem(PodTrouble.PREEMPTED, f"was preempted: {view.preempted.words}")
    return view.preempted.at, view.name, why


def of_successor(gone: PodView | None, pod: PodView, problem: Problem) -> Problem:
    """`problem` of a pod that has no node; where `gone` had its place, that is why."""
    took = preempted(gone)
    if problem.reason != PodTrouble.UNSCHEDULABLE or took is None or pod.created_at is None:
        return problem
    at, name, why = took
    if abs(pod.created_at - at) > _SUCCEEDED_WITHIN:
        return problem
    return replace(why, message=f"{problem.message}; {name}, before it, {why.message}", detail=problem.detail)
