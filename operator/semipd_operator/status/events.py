"""Events from the difference of two statuses: edges only, so that a repeated look tells nothing twice."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from semipd_operator.api.v1alpha1.resource import API_VERSION, KIND, SemiPDService
from semipd_operator.api.v1alpha1.status import Condition, DecisionStatus, SemiPDServiceStatus
from semipd_operator.reasons import (
    ConditionType,
    EventReason,
    ModelReason,
    MPSLost,
    NoStart,
    PodsReason,
    ReadyReason,
    Reason,
    SpecReason,
    SplitReason,
)
from semipd_operator.settings import MANAGER

_PASSING: dict[ConditionType, set[Reason]] = {
    ConditionType.SPEC_ACCEPTED: {SpecReason.PREDECESSOR_REMAINS},
    ConditionType.AVAILABLE: {PodsReason.NO_PODS, PodsReason.PODS_NOT_READY, ReadyReason.SCALED_TO_ZERO},
    ConditionType.MODEL_READY: {ModelReason.LOADING, ModelReason.DOWNLOADING},
    ConditionType.PARTITION_APPLIED: {SplitReason.APPLYING, SplitReason.ADJUSTING, SplitReason.ENGINE_NOT_READY},
}
"""False for these reasons is on the way, not wrong."""
_NOT_HEARD = (SplitReason.AGENT_UNREACHABLE, SplitReason.REPORT_STALE)
_LONGEST = 1024
"""Of a message, as the API server has it."""


@dataclass(frozen=True)
class Event:
    reason: EventReason
    message: str

    @property
    def type(self) -> str:
        return self.reason.type


def events(before: SemiPDServiceStatus, after: SemiPDServiceStatus) -> list[Event]:
    """Of two that say the same (an engine that is not started fails the model and the partition) the later stays."""
    found: list[Event] = []
    if before.template_hash and before.template_hash != after.template_hash:
        found.append(Event(EventReason.ROLLOUT_STARTED, f"rolling to pod template {after.template_hash}"))
    elif _rolling(before) and not _rolling(after):
        found.append(Event(EventReason.ROLLOUT_FINISHED, f"all pods run pod template {after.template_hash}"))
    for kind in ConditionType:
        found += _edges(kind, _told(before, kind), _told(after, kind))
    # What Available says of a pod is the model's or the partition's own word.
    found.sort(key=lambda event: event.reason is not EventReason.NOT_AVAILABLE)
    found = [event for n, event in enumerate(found) if all(event.message != later.message for later in found[n + 1 :])]
    return found + [Event(EventReason.PARTITION_CHANGED, tell(decision)) for decision in _new_decisions(before, after)]


def tell(decision: DecisionStatus) -> str:
    text = f"{decision.pod}: {decision.from_split} -> {decision.to}: {decision.reason}"
    if decision.observed_milliseconds is not None and decision.target_milliseconds is not None:
        metric = (decision.metric or "").upper()
        text += f" ({metric} {decision.observed_milliseconds:g} ms, target {decision.target_milliseconds:g} ms)"
    return f"{text}: {decision.message}" if decision.message else text


def event_object(service: SemiPDService, event: Event, instance: str, now: datetime) -> dict[str, Any]:
    """As the API server takes it. `instance`: the operator's pod."""
    meta, at = service.metadata, now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{meta.name}.", "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
        "type": event.type,
        "reason": event.reason.value,
        "message": event.message[:_LONGEST],
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "reportingInstance": instance,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


def _rolling(status: SemiPDServiceStatus) -> bool:
    ready = status.condition(ConditionType.READY)
    return status.updated_replicas < status.replicas or bool(ready and ready.reason == ReadyReason.ROLLOUT_IN_PROGRESS)


def _told(status: SemiPDServiceStatus, kind: ConditionType) -> Condition | None:
    """What is wrong for a moment, and has no remedy yet, is not told before Ready is taken back for it: a specification
    that is refused, an agent that is not heard."""
    found, ready = status.condition(kind), status.condition(ConditionType.READY)
    if found is None or ready is None or found.status != "False":
        return found
    may_pass = kind is ConditionType.SPEC_ACCEPTED or (
        kind is ConditionType.PARTITION_APPLIED and found.reason in _NOT_HEARD
    )
    blamed = (ready.status, ready.reason) == ("False", found.reason)
    return None if may_pass and not blamed else found


def _edges(kind: ConditionType, before: Condition | None, after: Condition | None) -> list[Event]:
    if after is None or (before and (before.status, before.reason) == (after.status, after.reason)):
        return []
    flipped = before is None or before.status != after.status
    said = f"{after.reason}: {after.message}" if after.message else after.reason
    wrong = after.status == "False" and after.reason not in _PASSING.get(kind, set())
    match kind:
        case ConditionType.SPEC_ACCEPTED if wrong:
            return [Event(EventReason.SPEC_REJECTED, said)]
        case ConditionType.MODEL_READY if wrong:
            return [Event(EventReason.MODEL_FAILED, said)]
        case ConditionType.MODEL_READY if after.reason == ModelReason.SLOW_KERNELS:
            return [Event(EventReason.SLOW_KERNELS, after.message)]
        case ConditionType.MODEL_READY if flipped and after.status == "True":
            return [Event(EventReason.MODEL_LOADED, after.message)]
        case ConditionType.AVAILABLE if wrong:
            return [Event(EventReason.NOT_AVAILABLE, said)]
        case ConditionType.PARTITION_APPLIED if wrong:
            if after.reason == SplitReason.AGENT_UNREACHABLE:
                return [Event(EventReason.AGENT_UNREACHABLE, said)]
            without_mps = after.reason in {entry.reason for entry in (*NoStart, *MPSLost)}
            return [Event(EventReason.MPS_UNAVAILABLE if without_mps else EventReason.PARTITION_APPLY_FAILED, said)]
        case ConditionType.SLO_ATTAINED if flipped and after.status == "False":
            return [Event(EventReason.SLO_VIOLATED, said)]
        case ConditionType.SLO_ATTAINED if flipped and after.status == "True" and before and before.status == "False":
            return [Event(EventReason.SLO_RECOVERED, "the targets are met again")]
    return []


def _new_decisions(before: SemiPDServiceStatus, after: SemiPDServiceStatus) -> list[DecisionStatus]:
    if after.partition is None:
        return []
    known = {(d.pod, d.time) for d in before.partition.decisions} if before.partition else set()
    return [d for d in reversed(after.partition.decisions) if (d.pod, d.time) not in known]
