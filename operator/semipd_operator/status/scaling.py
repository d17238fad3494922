"""Autoscaling: what the autoscaler says of itself, and how full the service is. Pure.

The sum over a service's ready pods is what autoscalers are given. A pod that does not tell counts as empty where the
others ask for more pods, and as full to its target where they ask for fewer: it never moves anything. Where no pod
tells there is no value, and autoscalers then hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from types import MappingProxyType
from typing import Any

from semipd_operator.reasons import ConditionType, ReadyReason, Reason, ScalingReason, SLOReason
from semipd_operator.status.observed import AutoscalerView, Observed, Problem
from semipd_operator.status.verdict import Verdict

EXTERNAL_METRICS_API = "external.metrics.k8s.io/v1beta1"
_ACTIVE = {"HorizontalPodAutoscaler": "ScalingActive", "ScaledObject": "Ready"}
"""The condition by which each kind says that it can scale."""
_NO_METRIC = "FailedGetExternalMetric"
_AMBIGUOUS = "AmbiguousSelector"
"""Several autoscalers scale the same pods, which the other one may well do by the SemiPDService."""
_REMEDIES = {_AMBIGUOUS: "Delete the other autoscaler, or unset spec.autoscaling."}
_FULLEST = 10_000.0
"""Whatever an agent says: what no integer and no quantity holds would end the answer to the autoscaler, and with it the
other services' of the namespace, and the status."""
START_SECONDS, LONGEST_START_SECONDS = 120.0, 300.0
"""Of a pod, where none has shown it, and what is believed of one that has: `Arrivals` looks no further ahead."""
_HEALTH = {"AbleToScale", "ScalingActive", "Ready"}
"""The others (ScalingLimited, Active, Fallback, Paused) tell of the load or of a wish, not of a defect."""


def autoscaler_view(kind: str, live: dict[str, Any] | None, *, known: bool = True, refusal: str = "") -> AutoscalerView:
    """`live`: the autoscaler as it stands, if it is the service's own."""
    listed = ((live or {}).get("status") or {}).get("conditions") or []
    said = {entry["type"]: entry for entry in listed}
    return AutoscalerView(
        kind=kind,
        found=live is not None,
        known=known,
        refusal=refusal,
        conditions=MappingProxyType(
            {
                name: Problem(entry.get("reason", ""), entry.get("message", ""))
                for name, entry in said.items()
                if name in _HEALTH and entry["status"] == "False"
            }
        ),
        at_max=said.get("ScalingLimited", {}).get("status") == "True"
        and said["ScalingLimited"].get("reason") == "TooManyReplicas",
        active=said.get(_ACTIVE[kind], {}).get("status") == "True",
    )


def scaling_ready(seen: Observed) -> Verdict | None:
    view, kind = seen.autoscaler, ConditionType.SCALING_READY
    if seen.foreign_scaler:
        return Verdict(kind, "False", ScalingReason.CONFLICTING_AUTOSCALER, contested(seen), seen.foreign_scaler)
    if view is None:
        return None
    if not view.known:
        return Verdict(kind, "False", ScalingReason.KEDA_NOT_INSTALLED, "the cluster does not know keda.sh/v1alpha1")
    if view.refusal:
        return Verdict(kind, "False", ScalingReason.NOT_GRANTED, view.refusal)
    if seen.service.spec.replicas == 0:
        return Verdict(kind, "Unknown", ReadyReason.SCALED_TO_ZERO, "spec.replicas is 0")
    if not view.found:
        return Verdict(kind, "Unknown", ScalingReason.AUTOSCALER_PENDING, f"the {view.kind} does not exist yet")
    missing = any(problem.reason == _NO_METRIC for problem in view.conditions.values())
    if view.metrics_owner and (missing or not view.metrics_served):
        message = f"{view.metrics_owner} is registered for {EXTERNAL_METRICS_API}, and does not serve the metric"
        return Verdict(kind, "False", ScalingReason.METRICS_SERVED_ELSEWHERE, message, view.metrics_owner)
    if not view.metrics_served:
        message = f"no server answers for {EXTERNAL_METRICS_API}"
        return Verdict(kind, "False", ScalingReason.METRICS_API_UNAVAILABLE, message)
    for problem in view.conditions.values():
        message = f"{view.kind}: {problem.reason}: {problem.message}"
        return Verdict(kind, "False", _cause(problem), message, remedy=_REMEDIES.get(problem.reason, ""))
    if view.at_max:
        most = seen.service.spec.autoscaling.max_replicas if seen.service.spec.autoscaling else 0
        message = f"the load asks for more than maxReplicas {most}: raise spec.autoscaling.maxReplicas"
        return Verdict(kind, "True", ScalingReason.AT_MAX_REPLICAS, message)
    if view.active:
        return Verdict(kind, "True", ScalingReason.SCALING_ACTIVE)
    return Verdict(kind, "Unknown", ScalingReason.AUTOSCALER_PENDING, f"the {view.kind} has not judged yet")


def contested(seen: Observed) -> str:
    name = seen.service.metadata.name
    return (
        f"HorizontalPodAutoscaler {seen.foreign_scaler} scales the Deployment {name}, which follows "
        f"semipd.io/v1alpha1 SemiPDService {name}"
    )


def _cause(problem: Problem) -> Reason:
    match problem.reason:
        case _ if problem.reason == _NO_METRIC:
            return ScalingReason.METRICS_MISSING
        case _ if problem.reason == _AMBIGUOUS:
            return ScalingReason.CONFLICTING_AUTOSCALER
    return ScalingReason.AUTOSCALER_FAILED


def fullness(seen: Observed) -> float | None:
    """Sum over the ready pods of how full each is, 1 being the edge of the SLO, by as much as requests are expected to
    grow; None while no pod tells."""
    return summed(told_fullness(seen), len(seen.ready_pods), target_fullness(seen), seen.growth)


def summed(told: Sequence[float], pods: int, target: float, growth: float = 1.0) -> float | None:
    """The same, of `pods` that are ready, of which some have told how full they are."""
    if not told:
        return None
    asked, silent = growth * sum(told), pods - len(told)
    return min(max(asked, target * pods), asked + target * silent)


def told_arrivals(seen: Observed) -> dict[str, tuple[float, int | None]]:
    """What `Arrivals` is told: by each pod's uid when it counted requests last, and what it had; of those that have
    targets and are not silent. Pods that are not ready yet begin at 0, so what they serve first is not lost. An agent
    whose engine is silent has no count to tell, and says so; one of an older release has none, and says nothing."""
    heard = ((uid, view) for uid, view in seen.agents.items() if view.fresh(seen.now))
    return {
        uid: (view.received_at.timestamp(), view.report.slo.arrivals)
        for uid, view in heard
        if view.received_at is not None and view.report is not None and view.report.slo is not None
        if view.report.slo.arrivals is not None or view.report.slo.reason != SLOReason.TELEMETRY_STALE
    }


def told_rate(seen: Observed) -> float:
    """Requests a second that the ready pods' ratios speak of."""
    reports = [seen.report(pod) for pod in seen.ready_pods]
    said = [one.slo.utilization_rate for one in reports if one and one.slo and one.slo.utilization_rate is not None]
    return sum(rate for rate in said if isfinite(rate))


def start_seconds(seen: Observed) -> float:
    """From a pod's creation to its serving, as this service's quickest one did it: one that was not ready for a while
    since says nothing."""
    took = (
        (pod.ready_since - pod.created_at).total_seconds()
        for pod in seen.ready_pods
        if pod.ready_since is not None and pod.created_at is not None
    )
    return min((one for one in took if 0 <= one <= LONGEST_START_SECONDS), default=START_SECONDS)


def told_fullness(seen: Observed) -> list[float]:
    """How full each ready pod is, of those that tell."""
    reports = [seen.report(pod) for pod in seen.ready_pods]
    said = [one.slo.utilization_ratio for one in reports if one and one.slo and one.slo.utilization_ratio is not None]
    return [min(max(ratio, 0.0), _FULLEST) for ratio in said if isfinite(ratio)]


def target_fullness(seen: Observed) -> float:
    """How full a pod is to be: what the autoscaler is told, or the edge of the SLO."""
    scaling = seen.service.spec.autoscaling
    return scaling.target_utilization_percent / 100 if scaling else 1.0
