"""Every condition, reason and event of the status, with what it means and what to do about it.

They are API: users and alerts match on them. ``docs/conditions.md`` is made from this module and a test holds them
together. Pods may report reasons of their own for a failed load; those pass through and are not listed.
"""

from __future__ import annotations

from enum import StrEnum

from semipd_operator.reason_entries import ADMISSION, MODEL_TROUBLE, MPS_LOST, NO_START, POD_TROUBLE, Entry, Reason

__all__ = ["EVENTS", "MEANING", "REASONS", "ConditionType", "Entry", "EventReason", "Reason", "remedy"]


class ConditionType(StrEnum):
    SPEC_ACCEPTED = "SpecAccepted"
    MODEL_READY = "ModelReady"
    AVAILABLE = "Available"
    PARTITION_APPLIED = "PartitionApplied"
    SCALING_READY = "ScalingReady"
    SLO_ATTAINED = "SLOAttained"
    SLO_FEASIBLE = "SLOFeasible"
    READY = "Ready"


MEANING: dict[ConditionType, str] = {
    ConditionType.SPEC_ACCEPTED: "The specification was rendered and the API server took every object.",
    ConditionType.MODEL_READY: "The weights are loaded in at least one pod, and no pod fails to load them.",
    ConditionType.AVAILABLE: "At least one pod can serve now, of any generation.",
    ConditionType.PARTITION_APPLIED: "In every ready pod the split read back from the workers is the requested one.",
    ConditionType.SCALING_READY: "The autoscaler can follow the load. Part of Ready only where another contests it.",
    ConditionType.SLO_ATTAINED: "The targets were met over the window. Not part of Ready. Present with an slo only.",
    ConditionType.SLO_FEASIBLE: "Some split within the bounds meets the targets. Not part of Ready. With an slo only.",
    ConditionType.READY: "SpecAccepted, ModelReady, Available, PartitionApplied, and all pods of this generation.",
}


REASONS: dict[ConditionType, tuple[Entry, ...]] = {
    ConditionType.SPEC_ACCEPTED: (
        Entry(
            Reason.ACCEPTED,
            "True",
            "All objects are applied; the message names what the cluster does not let the operator make.",
            "For a PodMonitor: install the Prometheus operator, and set rbac.podMonitors in the chart.",
        ),
        Entry(Reason.PAUSED, "True", "spec.paused is set: objects are left as they are.", "Unset spec.paused."),
        Entry(
            Reason.INVALID_SPEC,
            "False",
            "The CRD (of a newer version) allows a value that this operator cannot read. It counts as absent; where it "
            "would roll pods they are left as they are. The rest of the specification is in force.",
            "Upgrade the operator to the CRD's version, or change what the message names.",
        ),
        Entry(
            Reason.INVALID_POD_TEMPLATE,
            "False",
            "The Deployment is refused, e.g. because it asks for more than one GPU; the message says which field.",
            "Correct spec.podTemplate or spec.engine.resources.",
        ),
        Entry(
            Reason.NAME_CONFLICT,
            "False",
            "An object of the same name exists and belongs to someone else.",
            "Rename the SemiPDService, or delete that object.",
        ),
        Entry(
            Reason.APPLY_FAILED,
            "False",
            "The API server refuses an object for now.",
            "Mend what the API server names; it is tried again by itself.",
        ),
        *ADMISSION,
    ),
    ConditionType.MODEL_READY: (
        Entry(Reason.LOADED, "True", "The weights are loaded."),
        Entry(Reason.PENDING, "Unknown", "No pod has begun yet; Available says why."),
        Entry(Reason.SCALED_TO_ZERO, "Unknown", "spec.replicas is 0."),
        Entry(Reason.DOWNLOADING, "False", "The init container `model` downloads."),
        Entry(Reason.LOADING, "False", "The engine loads the weights."),
        *MODEL_TROUBLE,
        *NO_START,
    ),
    ConditionType.AVAILABLE: (
        Entry(Reason.PODS_READY, "True", "At least one pod is ready."),
        Entry(Reason.NO_PODS, "False", "No pod exists yet.", "kubectl describe deployment (of the same name)"),
        Entry(Reason.PODS_NOT_READY, "False", "Pods exist and none is ready yet."),
        Entry(Reason.SCALED_TO_ZERO, "False", "spec.replicas is 0."),
        *POD_TROUBLE,
        *MODEL_TROUBLE,
        *NO_START,
        *MPS_LOST,
    ),
    ConditionType.PARTITION_APPLIED: (
        Entry(Reason.APPLIED, "True", "Requested and applied split agree in every ready pod."),
        Entry(Reason.DISABLED, "True", "partition.mode is Disabled: there are no limits."),
        Entry(
            Reason.ADJUSTING, "True, False", "A split is moving; False once it takes longer than 30 s, or in Manual."
        ),
        Entry(Reason.APPLYING, "False", "A pod does not have this generation's configuration yet."),
        Entry(Reason.NO_READY_PODS, "Unknown", "No pod is ready."),
        Entry(
            Reason.AGENT_UNREACHABLE,
            "False",
            "A ready pod's agent does not answer the operator.",
            "Allow the operator to reach port 9400 of the pods (NetworkPolicy).",
        ),
        Entry(Reason.REPORT_STALE, "False", "A pod's last report is too old.", "kubectl logs POD -c engine"),
        Entry(Reason.ENGINE_NOT_READY, "False", "The engine starts or is being replaced."),
        Entry(
            Reason.WORKER_NOT_RESPONDING, "False", "A worker does not confirm the split.", "kubectl logs POD -c engine"
        ),
        Entry(
            Reason.READBACK_MISMATCH,
            "False",
            "A worker runs under another limit than asked.",
            "kubectl logs POD -c engine",
        ),
        Entry(
            Reason.GPU_SHARED,
            "False",
            "The node's device plugin gives the GPU to several pods (nvidia.com/gpu.sharing-strategy), whose work "
            "takes turns with this pod's: no split holds.",
            "Use nodes that do not share GPUs (nodeSelector nvidia.com/gpu.sharing-strategy: none), or set "
            "partition.mode Disabled.",
        ),
        Entry(
            Reason.PREPARATION_FAILED,
            "False",
            "Workers under the new limit could not be made ready; the split before it serves on.",
            "Auto goes back by itself; a configured split is tried again every minute, or ask for another one.",
        ),
        *NO_START,
        *MPS_LOST,
    ),
    ConditionType.SCALING_READY: (
        Entry(Reason.SCALING_ACTIVE, "True", "The autoscaler reads the metric and may change the number of pods."),
        Entry(
            Reason.AT_MAX_REPLICAS,
            "True",
            "The load asks for more pods than spec.autoscaling.maxReplicas allows.",
            "Raise maxReplicas, or see SLOAttained whether it matters.",
        ),
        Entry(Reason.AUTOSCALER_PENDING, "Unknown", "The autoscaler is not there yet, or has not judged yet."),
        Entry(Reason.SCALED_TO_ZERO, "Unknown", "spec.replicas is 0: autoscaling rests until it is set to 1 or more."),
        Entry(
            Reason.METRICS_MISSING,
            "False",
            "The metric has no value, so the number of pods stays: no ready pod tells the operator how full it is.",
            "See PartitionApplied: it names a pod whose agent does not answer. A new pod tells after ten seconds.",
        ),
        Entry(
            Reason.METRICS_API_UNAVAILABLE,
            "False",
            "Nobody serves external.metrics.k8s.io, so the number of pods stays.",
            "Set metricsApi.enabled in the chart, or see kubectl describe apiservice v1beta1.external.metrics.k8s.io.",
        ),
        Entry(
            Reason.METRICS_SERVED_ELSEWHERE,
            "False",
            "Another program (KEDA, prometheus-adapter) is registered for external.metrics.k8s.io, without our metric.",
            "Use spec.autoscaling.keda, or have that program serve semipd_utilization_ratio (docs/autoscaling.md).",
        ),
        Entry(
            Reason.KEDA_NOT_INSTALLED,
            "False",
            "autoscaling.keda is set and the cluster does not know keda.sh/v1alpha1.",
            "Install KEDA, or use autoscaling.hpa.",
        ),
        Entry(
            Reason.NOT_GRANTED,
            "False",
            "The operator's RBAC does not grant it the autoscaler's kind; the message has the API server's words.",
            "Set rbac.scaledObjects in the chart, or use autoscaling.hpa.",
        ),
        Entry(
            Reason.CONFLICTING_AUTOSCALER,
            "False",
            "Another HorizontalPodAutoscaler scales the same pods, or the Deployment itself against the operator.",
            "Set its scaleTargetRef to the SemiPDService, or delete it.",
        ),
        Entry(
            Reason.AUTOSCALER_FAILED,
            "False",
            "The autoscaler says that it cannot scale.",
            "Mend what it names: kubectl describe hpa (or scaledobject) of the same name.",
        ),
    ),
    ConditionType.SLO_ATTAINED: (
        Entry(Reason.TARGETS_MET, "True", "Both targets were met over the window."),
        Entry(Reason.TTFT_ABOVE_TARGET, "False", "The time to the first token is above its target in a pod."),
        Entry(Reason.TPOT_ABOVE_TARGET, "False", "The time per output token is above its target in a pod."),
        Entry(Reason.INSUFFICIENT_TRAFFIC, "Unknown", "Too few requests finished in the window."),
        Entry(Reason.METRICS_UNAVAILABLE, "Unknown", "No ready pod reports fresh latencies."),
        Entry(
            Reason.TELEMETRY_STALE,
            "Unknown",
            "The engine has told its agent nothing new for a while; the split holds.",
            "None, unless it stays: PartitionApplied and Available name a process that does not answer.",
        ),
    ),
    ConditionType.SLO_FEASIBLE: (
        Entry(Reason.FEASIBLE, "True", "A split within the bounds can meet the targets."),
        Entry(
            Reason.NOT_FEASIBLE,
            "False",
            "No split within the bounds can meet the targets under this load.",
            "Add replicas, relax the targets or widen the bounds.",
        ),
        Entry(Reason.NOT_ASSESSED, "Unknown", "No pod has judged it yet."),
    ),
    ConditionType.READY: (
        Entry(Reason.READY, "True", "Everything is as specified."),
        Entry(Reason.SCALED_TO_ZERO, "True", "spec.replicas is 0 and no pod is left."),
        Entry(Reason.ROLLOUT_IN_PROGRESS, "False", "Pods of an older generation are being replaced; it serves on."),
        Entry(Reason.PODS_NOT_READY, "False", "Fewer pods are ready than specified."),
        Entry(
            Reason.ROLLOUT_STALLED,
            "False",
            "Pods are missing or old, and for an hour (the Deployment's deadline) none became ready.",
            "kubectl describe deployment and the log of its newest pod; what serves goes on serving.",
        ),
        Entry(
            Reason.DELETING,
            "False",
            "The service is being deleted, and someone's finalizers hold it; none is ours.",
            "Have the controller that the message names finish, or remove its finalizer.",
        ),
        Entry(
            Reason.CONFLICTING_AUTOSCALER,
            "False",
            "A HorizontalPodAutoscaler of someone else scales the Deployment, so its number of pods never stays.",
            "Set its scaleTargetRef to the SemiPDService, or delete it.",
        ),
    ),
}
"""Ready also carries the reason of the first of its conditions that is not True."""

_REMEDIES: dict[tuple[str, str], str] = {
    (where, str(entry.reason)): entry.remedy
    for kind, entries in REASONS.items()
    for entry in entries
    if "False" in entry.status
    for where in ("", kind)
}


def remedy(kind: str, reason: str) -> str:
    """What to do about a condition that is False for `reason`; empty where nothing is to be done, or nothing is known.
    Ready has that of the condition whose reason it carries."""
    return _REMEDIES.get((kind, reason)) or _REMEDIES.get(("", reason), "")


class EventReason(StrEnum):
    PARTITION_CHANGED = "PartitionChanged"
    PARTITION_APPLY_FAILED = "PartitionApplyFailed"
    AGENT_UNREACHABLE = "AgentUnreachable"
    MPS_UNAVAILABLE = "MPSUnavailable"
    MODEL_LOADED = "ModelLoaded"
    MODEL_FAILED = "ModelFailed"
    NOT_AVAILABLE = "NotAvailable"
    ROLLOUT_STARTED = "RolloutStarted"
    ROLLOUT_FINISHED = "RolloutFinished"
    SLO_VIOLATED = "SLOViolated"
    SLO_RECOVERED = "SLORecovered"
    SPEC_REJECTED = "SpecRejected"
    OPERATOR_CONFLICT = "OperatorConflict"


EVENTS: dict[EventReason, tuple[str, str]] = {
    EventReason.PARTITION_CHANGED: ("Normal", "A pod's split moved: from, to, why, on which evidence."),
    EventReason.PARTITION_APPLY_FAILED: ("Warning", "PartitionApplied became False for another reason than a move."),
    EventReason.AGENT_UNREACHABLE: ("Warning", "A ready pod's agent stopped answering."),
    EventReason.MPS_UNAVAILABLE: ("Warning", "A pod cannot use NVIDIA MPS; the message begins with the reason."),
    EventReason.MODEL_LOADED: ("Normal", "ModelReady became True."),
    EventReason.MODEL_FAILED: ("Warning", "A download or load failed."),
    EventReason.NOT_AVAILABLE: ("Warning", "No pod can serve, for a reason that needs someone."),
    EventReason.ROLLOUT_STARTED: ("Normal", "The pod template changed."),
    EventReason.ROLLOUT_FINISHED: ("Normal", "All pods run the current template."),
    EventReason.SLO_VIOLATED: ("Warning", "SLOAttained became False."),
    EventReason.SLO_RECOVERED: ("Normal", "SLOAttained became True again."),
    EventReason.SPEC_REJECTED: ("Warning", "SpecAccepted became False."),
    EventReason.OPERATOR_CONFLICT: (
        "Warning",
        "Another operator looks after this service; the one that says so leaves it alone. Let only one watch the "
        "namespace (`watchNamespaces`), or uninstall one.",
    ),
}
"""Type and meaning of each event. Events tell edges; at most one per reason and minute of each service."""
