"""Every condition, reason and event of the status, with what it means and what to do about it.

They are API: users and alerts match on them. ``docs/conditions.md`` is made from this package and a test holds them
together. Each subject is a module. Pods of a newer engine may report reasons of their own for a failed load, which pass
through and are not listed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from semipd_operator.reasons.load import ScalingReason, SLOReason
from semipd_operator.reasons.model import ModelReason, ModelTrouble
from semipd_operator.reasons.pods import PodsReason, PodTrouble
from semipd_operator.reasons.reason import Entry, Reason
from semipd_operator.reasons.service import Admission, ReadyReason, SpecReason
from semipd_operator.reasons.split import MPSLost, NoStart, SplitReason

__all__ = [
    "MEANING",
    "REASONS",
    "Admission",
    "ConditionType",
    "Entry",
    "EventReason",
    "MPSLost",
    "ModelReason",
    "ModelTrouble",
    "NoStart",
    "PodTrouble",
    "PodsReason",
    "ReadyReason",
    "Reason",
    "SLOReason",
    "ScalingReason",
    "SpecReason",
    "SplitReason",
    "known",
    "remedy",
]


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

_ZERO = ReadyReason.SCALED_TO_ZERO
_FEASIBLE = (SLOReason.FEASIBLE, SLOReason.NOT_FEASIBLE, SLOReason.NOT_ASSESSED)
REASONS: dict[ConditionType, tuple[Reason | Entry, ...]] = {
    ConditionType.SPEC_ACCEPTED: (
        *SpecReason,
        Entry(
            PodTrouble.QUOTA_EXCEEDED,
            "False",
            "A ResourceQuota of the namespace allows no further object of the service's.",
            "Raise the quota that the API server names, or delete what it is used up by; it is tried again by itself.",
        ),
        *Admission,
    ),
    ConditionType.MODEL_READY: (*ModelReason, Entry(_ZERO, "Unknown", "spec.replicas is 0."), *ModelTrouble, *NoStart),
    ConditionType.AVAILABLE: (
        *PodsReason,
        Entry(_ZERO, "False", "spec.replicas is 0."),
        *PodTrouble,
        Entry(
            SplitReason.AGENT_UNREACHABLE,
            "False",
            "A started pod's agent does not answer the operator for 30 s, so nothing is known of its engine.",
            SplitReason.AGENT_UNREACHABLE.remedy,
        ),
        *Admission,
        *ModelTrouble,
        *NoStart,
        *MPSLost,
    ),
    ConditionType.PARTITION_APPLIED: (*SplitReason, *NoStart, *MPSLost),
    ConditionType.SCALING_READY: (
        *ScalingReason,
        Entry(_ZERO, "Unknown", "spec.replicas is 0: autoscaling rests until it is set to 1 or more."),
    ),
    ConditionType.SLO_ATTAINED: tuple(reason for reason in SLOReason if reason not in _FEASIBLE),
    ConditionType.SLO_FEASIBLE: _FEASIBLE,
    ConditionType.READY: (
        *ReadyReason,
        Entry(PodsReason.PODS_NOT_READY, "False", "Fewer pods are ready than specified."),
        Entry(
            ScalingReason.CONFLICTING_AUTOSCALER,
            "False",
            "A HorizontalPodAutoscaler of someone else scales the Deployment, so its number of pods never stays.",
            ScalingReason.CONFLICTING_AUTOSCALER.remedy,
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
_KNOWN = {str(entry.reason) for entries in REASONS.values() for entry in entries}


def remedy(kind: str, reason: str) -> str:
    """What to do about a condition that is False for `reason`; empty where nothing is to be done, or nothing is known.
    Ready has that of the condition whose reason it carries."""
    return _REMEDIES.get((kind, reason)) or _REMEDIES.get(("", reason), "")


def known(reason: str) -> bool:
    """Whether this version has the word."""
    return reason in _KNOWN


class EventReason(StrEnum):
    """Events tell edges; at most one per reason and minute of each service."""

    type: str
    """Normal or Warning."""
    meaning: str

    def __new__(cls, word: str, type: str = "", meaning: str = "") -> Self:
        one = str.__new__(cls, word)
        one._value_ = word
        one.type, one.meaning = type, meaning
        return one

    PARTITION_CHANGED = ("PartitionChanged", "Normal", "A pod's split moved: from, to, why, on which evidence.")
    PARTITION_APPLY_FAILED = (
        "PartitionApplyFailed",
        "Warning",
        "PartitionApplied became False for another reason than a move.",
    )
    AGENT_UNREACHABLE = ("AgentUnreachable", "Warning", "A ready pod's agent has not answered for 30 s.")
    MPS_UNAVAILABLE = ("MPSUnavailable", "Warning", "A pod cannot use NVIDIA MPS; the message begins with the reason.")
    MODEL_LOADED = ("ModelLoaded", "Normal", "ModelReady became True.")
    SLOW_KERNELS = ("SlowKernels", "Warning", "A pod computes with slower kernels than its machine could run.")
    MODEL_FAILED = ("ModelFailed", "Warning", "A download or load failed.")
    NOT_AVAILABLE = ("NotAvailable", "Warning", "No pod can serve, for a reason that needs someone.")
    POD_DISRUPTED = (
        "PodDisrupted",
        "Warning",
        "The cluster takes pods away: preempted, evicted, drained, tainted; the message has its words. After ten "
        "events in ten minutes there is one a minute for all that went. Another pod follows where one fits; "
        "priorityClassName, tolerations (spec.podTemplate) and a disruption budget (from two replicas on) decide how "
        "easily it happens.",
    )
    ROLLOUT_STARTED = ("RolloutStarted", "Normal", "The pod template changed.")
    ROLLOUT_FINISHED = ("RolloutFinished", "Normal", "All pods run the current template.")
    SLO_VIOLATED = ("SLOViolated", "Warning", "SLOAttained became False.")
    SLO_RECOVERED = ("SLORecovered", "Normal", "SLOAttained became True again.")
    SPEC_REJECTED = ("SpecRejected", "Warning", "SpecAccepted became False.")
    STATUS_REFUSED = (
        "StatusRefused",
        "Warning",
        "The API server refuses the service's status, so what it shows is old; told once, and the write is tried again "
        "after a minute at most. Have the policy, webhook or role that the message names let the operator write "
        "`semipdservices/status`.",
    )
    CRD_OUTDATED = (
        "CRDOutdated",
        "Warning",
        "The installed CRD is of an older release than the operator and has no place for the fields of the status that "
        "the message names; the rest is written, and the whole is tried again every minute. Bring the CRD to the "
        "operator's release.",
    )
    OPERATOR_CONFLICT = (
        "OperatorConflict",
        "Warning",
        "Another operator looks after this service; the one that says so leaves it alone. Let only one watch the "
        "namespace (`watchNamespaces`), or uninstall one.",
    )
