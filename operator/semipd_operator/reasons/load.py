"""Whether the load is met: the targets, the splits that may meet them, the autoscaler."""

from __future__ import annotations

from semipd_operator.reasons.reason import Reason


class SLOReason(Reason):
    """Of SLOAttained and SLOFeasible."""

    TARGETS_MET = (
        "TargetsMet",
        "True",
        "Both targets were met over the window.",
    )
    TTFT_ABOVE_TARGET = (
        "TTFTAboveTarget",
        "False",
        "The time to the first token is above its target in a pod.",
    )
    TPOT_ABOVE_TARGET = (
        "TPOTAboveTarget",
        "False",
        "The time per output token is above its target in a pod.",
    )
    INSUFFICIENT_TRAFFIC = (
        "InsufficientTraffic",
        "Unknown",
        "Too few requests finished in the window.",
    )
    METRICS_UNAVAILABLE = (
        "MetricsUnavailable",
        "Unknown",
        "No ready pod reports fresh latencies.",
    )
    TELEMETRY_STALE = (
        "TelemetryStale",
        "Unknown",
        "The engine has told its agent nothing new for a while; the split holds.",
        "None, unless it stays: PartitionApplied and Available name a process that does not answer.",
    )
    FEASIBLE = (
        "Feasible",
        "True",
        "A split within the bounds can meet the targets.",
    )
    NOT_FEASIBLE = (
        "NotFeasible",
        "False",
        "No split within the bounds can meet the targets under this load.",
        "Add replicas, relax the targets or widen the bounds.",
    )
    NOT_ASSESSED = (
        "NotAssessed",
        "Unknown",
        "No pod has judged it yet.",
    )


class ScalingReason(Reason):
    """Of ScalingReady."""

    SCALING_ACTIVE = (
        "ScalingActive",
        "True",
        "The autoscaler reads the metric and may change the number of pods.",
    )
    AT_MAX_REPLICAS = (
        "AtMaxReplicas",
        "True",
        "The load asks for more pods than spec.autoscaling.maxReplicas allows.",
        "Raise maxReplicas, or see SLOAttained whether it matters.",
    )
    AUTOSCALER_PENDING = (
        "AutoscalerPending",
        "Unknown",
        "The autoscaler is not there yet, or has not judged yet.",
    )
    METRICS_MISSING = (
        "MetricsMissing",
        "False",
        "The metric has no value, so the number of pods stays: no ready pod tells the operator how full it is.",
        "See Ready while no pod is ready, else PartitionApplied: it names a pod whose agent does not answer. A new pod "
        "tells after ten seconds.",
    )
    METRICS_API_UNAVAILABLE = (
        "MetricsAPIUnavailable",
        "False",
        "Nobody serves external.metrics.k8s.io, so the number of pods stays.",
        "Set metricsApi.enabled in the chart, or see kubectl describe apiservice v1beta1.external.metrics.k8s.io.",
    )
    METRICS_SERVED_ELSEWHERE = (
        "MetricsServedElsewhere",
        "False",
        "Another program (KEDA, prometheus-adapter) is registered for external.metrics.k8s.io, without our metric.",
        "Use spec.autoscaling.keda, or have that program serve semipd_utilization_ratio (docs/autoscaling.md).",
    )
    KEDA_NOT_INSTALLED = (
        "KEDANotInstalled",
        "False",
        "autoscaling.keda is set and the cluster does not know keda.sh/v1alpha1.",
        "Install KEDA, or use autoscaling.hpa.",
    )
    NOT_GRANTED = (
        "NotGranted",
        "False",
        "The operator's RBAC does not grant it the autoscaler's kind; the message has the API server's words.",
        "Set rbac.scaledObjects in the chart, or use autoscaling.hpa.",
    )
    CONFLICTING_AUTOSCALER = (
        "ConflictingAutoscaler",
        "False",
        "Another HorizontalPodAutoscaler scales the same pods, or the Deployment itself against the operator.",
        "Set its scaleTargetRef to the SemiPDService, or delete it.",
    )
    AUTOSCALER_FAILED = (
        "AutoscalerFailed",
        "False",
        "The autoscaler says that it cannot scale.",
        "Mend what it names: kubectl describe hpa (or scaledobject) of the same name.",
    )
