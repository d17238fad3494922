"""The split of a service from the splits of its pods, and whether it is in force."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from math import isfinite

from semipd_agent.contract import Enforcement, Mode, PartitionState, Split, StatusReport, apart
from semipd_operator.api.v1alpha1.status import (
    MAX_DECISIONS,
    MAX_PODS,
    DecisionStatus,
    PartitionStatus,
    PodPartition,
    Shares,
)
from semipd_operator.reasons import ConditionType, SplitReason
from semipd_operator.status import words
from semipd_operator.status.observed import Observed, PodView
from semipd_operator.status.verdict import Verdict

GRACE = timedelta(seconds=30)
"""A move of the SLO loop that is shorter than this does not count against PartitionApplied, and an order that reaches
its pod sooner not against Ready."""
FIRST_WORD = timedelta(seconds=10)
"""A pod that became ready, or that this process has just met, has this time until its agent must have been heard."""

_POD_MESSAGE = 256
"""Of each of up to 64 pods; conditions have the whole of what is wrong with one."""
_WORD = 32
"""Of an agent's words for its state: those of a later version may be any."""
_SHOWN: dict[str, str] = {Enforcement.SPATIAL_CAP: "SM", Enforcement.PACED: "paced", Enforcement.NONE: "none"}
_WEAKEST_FIRST: tuple[str, ...] = (Enforcement.NONE, Enforcement.PACED, Enforcement.SPATIAL_CAP)


def partition_applied(seen: Observed) -> Verdict:
    kind = ConditionType.PARTITION_APPLIED
    if not seen.ready_pods:
        return _refused(seen) or Verdict(kind, "Unknown", SplitReason.NO_READY_PODS, "no pod is ready")
    verdicts = [_pod_verdict(seen, pod) for pod in seen.ready_pods]
    failing = next(iter(sorted((one for one in verdicts if one.status != "True"), key=lambda one: one.passing)), None)
    moving = next((verdict for verdict in verdicts if verdict.reason == SplitReason.ADJUSTING), None)
    return failing or moving or verdicts[0]


def _refused(seen: Observed) -> Verdict | None:
    """A pod that is not ready because nothing can enforce its split: its engine is not started, or was stopped."""
    for pod in seen.live_pods:
        report = seen.report(pod)
        if report and report.partition.state is PartitionState.FAILED:
            message = f"{pod.name}: {report.partition.message}"
            return Verdict(ConditionType.PARTITION_APPLIED, "False", str(report.partition.reason), message)
    return None


def _pod_verdict(seen: Observed, pod: PodView) -> Verdict:
    def verdict(status: str, reason: str, message: str = "", *, passing: bool = False) -> Verdict:
        said = f"{pod.name}: {message}" if message else ""
        return Verdict(ConditionType.PARTITION_APPLIED, status, reason, said, passing=passing)

    agent, service = seen.agent(pod), seen.service
    report = seen.report(pod)
    if report is None:
        new = any(since and seen.now - since <= FIRST_WORD for since in (pod.ready_since, agent.asked_since))
        since = agent.received_at or agent.asked_since
        lately = since is not None and seen.now - since <= GRACE
        if (new or lately) and _inherited(seen, pod):
            return verdict("Unknown", SplitReason.NO_READY_PODS, "it is older than the service, and not heard yet")
        if agent.report is None and not agent.error:
            return verdict("False", SplitReason.AGENT_UNREACHABLE, "its agent was not heard yet", passing=new)
        # It serves, as the kubelet finds; that a busy node's agent misses some polls needs nobody.
        if agent.error:
            return verdict("False", SplitReason.AGENT_UNREACHABLE, agent.error, passing=lately)
        return verdict("False", SplitReason.REPORT_STALE, "its last report is too old", passing=lately)
    partition = report.partition
    # A paused service pushes nothing, so its pods may well be of an older generation.
    if not service.spec.paused:
        in_time = seen.now - (agent.behind_since or seen.now) <= GRACE
        foreign = apart(report.config_uid, service.metadata.uid)
        has, generation = report.config_generation, service.metadata.generation
        if has > generation and not foreign and not in_time:  # a restored backup; an older agent of a service made anew
            message = f"it has generation {has} and takes no earlier one: delete the pod, the next takes {generation}"
            return verdict("False", SplitReason.APPLYING, message)
        if partition.mode != service.spec.mode:
            message = f"it runs mode {partition.mode}, not {service.spec.mode}"
            return verdict("False", SplitReason.APPLYING, message, passing=in_time)
        if service.spec.mode is Mode.MANUAL and partition.requested != service.spec.split:
            return verdict("False", SplitReason.APPLYING, f"it still asks for {partition.requested}", passing=in_time)
        if (has < generation or foreign) and not in_time:
            return verdict("False", SplitReason.APPLYING, "it does not have this generation's configuration")
    if partition.mode is Mode.DISABLED:
        return verdict("True", SplitReason.DISABLED)
    if pod.gpu_sharing:
        return verdict(
            "False", SplitReason.GPU_SHARED, f"node {pod.node} gives its GPU to several pods ({pod.gpu_sharing})"
        )
    if partition.state is PartitionState.APPLIED:
        return verdict("True", SplitReason.APPLIED)
    if partition.state is PartitionState.ADJUSTING:
        in_time = seen.now - (agent.adjusting_since or seen.now) <= GRACE
        message = partition.message or f"moving to {partition.requested}"
        status = "True" if in_time and partition.mode is Mode.AUTO else "False"
        return verdict(status, SplitReason.ADJUSTING, message, passing=in_time)
    return verdict("False", str(partition.reason), partition.message or str(partition.state))


def _inherited(seen: Observed, pod: PodView) -> bool:
    """Of a deleted service of the same name, whose pods go, or given back with its Deployment: that it is ours its
    agent says, by taking the service's token, and a service that was never Ready is not called so before."""
    born, ready = seen.service.metadata.creation_timestamp, seen.previous.condition(ConditionType.READY)
    older = born is not None and pod.created_at is not None and pod.created_at < born
    return older and seen.agent(pod).received_at is None and (ready is None or ready.status != "True")


def partition_status(seen: Observed) -> PartitionStatus:
    reports = [(pod, report) for pod in seen.ready_pods if (report := seen.report(pod))]
    partitions = [report.partition for _, report in reports]
    complete = len(reports) == len(seen.ready_pods)
    applied = [partition.applied for partition in partitions if partition.applied]
    enforcement = min((p.enforcement for p in partitions), key=_strength, default=None)
    changes = [partition.last_change_time for partition in partitions if partition.last_change_time]
    mode = partitions[0].mode if partitions else seen.service.spec.mode
    policy = next((partition.policy for partition in partitions if partition.policy), None)
    return PartitionStatus(
        mode=words.told(mode, _WORD),
        policy=policy and words.told(policy, _WORD),
        requested=_same([partition.requested for partition in partitions]),
        quantized=_same([partition.quantized for partition in partitions]),
        applied=_same(applied) if complete and len(applied) == len(partitions) else None,
        summary=split_range(applied),
        enforcement=enforcement and words.told(enforcement, _WORD),
        enforced=words.told(_SHOWN.get(enforcement, enforcement), _WORD) if enforcement else "",
        converged_replicas=sum(1 for partition in partitions if partition.state is PartitionState.APPLIED),
        last_change_time=max(changes, default=None),
        pods=tuple(_pod_partition(seen, pod) for pod in seen.live_pods[:MAX_PODS]),
        decisions=_decisions(seen),
    )


def _strength(enforcement: str) -> int:
    """What this version does not know counts as the weakest: it is shown, and hides no other pod's strength."""
    return _WEAKEST_FIRST.index(enforcement) if enforcement in _WEAKEST_FIRST else -1


def split_range(splits: Iterable[Split]) -> str:
    """``60/40``, or ``60-80/40-60`` where pods differ; ``mixed/256`` where there is no isolation."""
    told = list(splits)
    splits = [split for split in told if not split.mixed_tokens]
    mixed = sorted({str(split) for split in told if split.mixed_tokens})
    if not splits:
        return ", ".join(mixed)

    def spread(values: list[int]) -> str:
        return str(values[0]) if min(values) == max(values) else f"{min(values)}-{max(values)}"

    shares = f"{spread([s.prefill_percent for s in splits])}/{spread([s.decode_percent for s in splits])}"
    return ", ".join((shares, *mixed))


def _same(splits: list[Split]) -> Shares | None:
    return Shares.of(splits[0]) if splits and all(split == splits[0] for split in splits) else None


def _pod_partition(seen: Observed, pod: PodView) -> PodPartition:
    report = seen.report(pod)
    if report is None:
        said = words.told(seen.agent(pod).error, _POD_MESSAGE)
        return PodPartition(name=pod.name, node=pod.node, state=PartitionState.UNKNOWN, message=said)
    partition = report.partition
    return PodPartition(
        name=pod.name,
        node=pod.node,
        requested=Shares.of(partition.requested),
        quantized=Shares.of(partition.quantized),
        applied=Shares.of(partition.applied) if partition.applied else None,
        enforcement=words.told(partition.enforcement, _WORD),
        state=words.told(partition.state, _WORD),
        message=words.told(partition.message, _POD_MESSAGE),
    )


def _decisions(seen: Observed) -> tuple[DecisionStatus, ...]:
    """The newest of all pods. Those of pods that are gone stay until newer ones push them out."""
    fresh = [decision for pod in seen.live_pods if (report := seen.report(pod)) for decision in _of(pod.name, report)]
    known = {(decision.pod, decision.time) for decision in fresh}
    previous = seen.previous.partition.decisions if seen.previous.partition else ()
    kept = [decision for decision in previous if (decision.pod, decision.time) not in known]
    ordered = sorted([*fresh, *kept], key=lambda decision: (decision.time, decision.pod), reverse=True)
    return tuple(ordered[:MAX_DECISIONS])


def _of(pod: str, report: StatusReport) -> list[DecisionStatus]:
    return [
        DecisionStatus(
            # Kubernetes keeps whole microseconds at best; so must the key that tells decisions apart.
            time=decision.time,
            pod=pod,
            from_split=Shares.of(decision.from_split),
            to=Shares.of(decision.to),
            reason=words.reason(decision.reason),
            metric=decision.metric and words.told(decision.metric, _WORD),
            observed_milliseconds=_rounded(decision.observed_milliseconds),
            target_milliseconds=_rounded(decision.target_milliseconds),
            outcome=words.told(decision.outcome, _WORD),
            message=words.told(decision.message),
        )
        for decision in report.decisions
    ]


def _rounded(value: float | None) -> float | None:
    """None for what JSON cannot say, too."""
    return None if value is None or not isfinite(value) else round(value, 1)
