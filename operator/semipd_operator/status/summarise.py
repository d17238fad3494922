"""The whole status from what is observed, and the rule by which it is written.

Conditions have positive polarity; Ready carries the reason of the first condition that is not True. SLOAttained,
SLOFeasible and ScalingReady stay outside of it: a service that is slow, or of a fixed size, still serves.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from semipd_operator.api.v1alpha1.status import MetricStatus, SemiPDServiceStatus, SLOStatus
from semipd_operator.reasons import (
    ConditionType,
    PodsReason,
    ReadyReason,
    ScalingReason,
    SpecReason,
    remedy,
)
from semipd_operator.status import words
from semipd_operator.status.causes import missing_pods, shut
from semipd_operator.status.model import ON_THE_WAY, model_ready, model_status
from semipd_operator.status.observed import Observed, Problem
from semipd_operator.status.partition import partition_applied, partition_status
from semipd_operator.status.scaling import contested, scaling_ready
from semipd_operator.status.slo import slo_attained, slo_feasible, slo_status
from semipd_operator.status.verdict import Verdict


def summarise(seen: Observed) -> SemiPDServiceStatus:
    """Pure: equal observations give equal statuses."""
    service = seen.service
    parts = [spec_accepted(seen), model_ready(seen), available(seen), partition_applied(seen)]
    ready = ready_verdict(seen, parts)
    verdicts = [*parts, scaling_ready(seen), slo_attained(seen), slo_feasible(seen), ready]
    generation = service.metadata.generation
    accepted = seen.problem is None and not service.spec.paused
    return SemiPDServiceStatus(
        observed_generation=generation if accepted else seen.previous.observed_generation,
        url=seen.url,
        reason=_column(ready),
        replicas=len(seen.live_pods),
        ready_replicas=len(seen.ready_pods),
        updated_replicas=sum(pod.template_hash == seen.template_hash for pod in seen.live_pods),
        selector=seen.selector,
        template_hash=seen.template_hash,
        conditions=tuple(v.condition(seen.previous, seen.now, generation) for v in verdicts if v is not None),
        model=model_status(seen),
        partition=partition_status(seen),
        slo=slo_status(seen),
    )


def _column(ready: Verdict) -> str:
    detail = words.told(ready.detail, words.MAX_REASON)
    word = words.reason(ready.reason)
    return f"{word}({detail})" if detail else word


def spec_accepted(seen: Observed) -> Verdict:
    kind = ConditionType.SPEC_ACCEPTED
    if seen.problem:
        return Verdict.of(kind, seen.problem)
    if seen.service.spec.paused:
        return Verdict(kind, "True", SpecReason.PAUSED, "spec.paused is set: objects are left as they are")
    ignored = [f"{field} is ignored: this version of the operator does not know it" for field in seen.ignored]
    return Verdict(kind, "True", SpecReason.ACCEPTED, "; ".join([*seen.lacking, *ignored, *_added(seen)]))


def _added(seen: Observed) -> list[str]:
    """What we do not own we do not take back: who set it is told, and who can undo it is whoever reads that."""
    if not seen.additions:
        return []
    name = seen.service.metadata.name
    undo = f"what is to stay belongs in spec.podTemplate, and the rest out of it: kubectl edit deployment {name}"
    return [f"others changed Deployment {name}: {'; '.join(seen.additions)} ({undo})"]


def available(seen: Observed) -> Verdict:
    kind = ConditionType.AVAILABLE
    ready, wanted = len(seen.ready_pods), seen.service.spec.replicas
    cause = missing_pods(seen)
    if ready:
        told = f"{ready} of {wanted} pods are ready" + (f": {cause.message}" if cause and ready < wanted else "")
        return Verdict(kind, "True", PodsReason.PODS_READY, "; ".join(filter(None, (told, seen.unexposed))))
    if cause:
        return Verdict.of(kind, cause)
    if seen.live_pods:
        pulls = next((pod for pod in seen.live_pods if pod.pulling), None)
        told = f"none of {len(seen.live_pods)} pods is ready yet"
        told += f": {pulls.name}: node {pulls.node} pulls the image of container {pulls.pulling}" if pulls else ""
        return Verdict(kind, "False", PodsReason.PODS_NOT_READY, told)
    if wanted == 0:
        return Verdict(kind, "False", ReadyReason.SCALED_TO_ZERO, "spec.replicas is 0")
    if seen.service.spec.paused:
        rests = Problem(PodsReason.NO_PODS, "no pod exists, and none is made", remedy=SpecReason.PAUSED.remedy)
        return Verdict.of(kind, rests)
    if seen.problem and not seen.problem.for_now:  # there may well be no Deployment to look at
        what = seen.problem.remedy or remedy(ConditionType.SPEC_ACCEPTED, seen.problem.reason)
        first = Problem(PodsReason.NO_PODS, f"no pod exists: see SpecAccepted, {seen.problem.reason}", remedy=what)
        return Verdict.of(kind, first)
    return Verdict(kind, "False", PodsReason.NO_PODS, "no pod exists yet")


def ready_verdict(seen: Observed, parts: list[Verdict]) -> Verdict:
    """`parts` in the order of importance. A False one tells more than an Unknown one."""
    kind = ConditionType.READY
    wanted = seen.service.spec.replicas
    accepted = parts[0].status == "True" or parts[0].passing
    if accepted and wanted == 0 and not seen.live_pods:
        refused = parts[0].message if parts[0].passing else ""
        told = "; ".join(filter(None, ("spec.replicas is 0", refused, seen.unexposed)))
        return Verdict(kind, "True", ReadyReason.SCALED_TO_ZERO, told)
    cause = missing_pods(seen)
    failing = [verdict for verdict in parts if verdict.status == "False" and not verdict.passing]
    failing += [verdict for verdict in parts if verdict.status == "Unknown"]
    if failing:
        # That a model is on its way tells less than why a pod is missing, or lately went.
        ahead = [one for one in failing if one.reason not in ON_THE_WAY] if cause else []
        first = (ahead or failing)[0]
        said = "; ".join([first.message, *(_added(seen) if cause else ())])
        return replace(first, type=kind, status="False", message=said, passing=False)
    if closed := shut(seen):
        return Verdict.of(kind, closed)
    outdated = seen.outdated_pods
    ready = len(seen.ready_pods)
    if (outdated or ready < wanted) and cause:
        return Verdict.of(
            kind, cause, f"{ready} of {wanted} pods are ready: {'; '.join([cause.message, *_added(seen)])}"
        )
    if seen.stalled and (outdated or ready < wanted):
        return Verdict(
            kind, "False", ReadyReason.ROLLOUT_STALLED, f"{ready} of {wanted} pods are ready: {seen.stalled}"
        )
    if outdated:
        updated = len(seen.live_pods) - len(outdated)
        return Verdict(kind, "False", ReadyReason.ROLLOUT_IN_PROGRESS, f"{updated} of {wanted} pods are updated")
    if ready < wanted:
        return Verdict(kind, "False", PodsReason.PODS_NOT_READY, f"{ready} of {wanted} pods are ready")
    if seen.foreign_scaler:
        return Verdict(kind, "False", ScalingReason.CONFLICTING_AUTOSCALER, contested(seen), seen.foreign_scaler)
    if seen.strangers:
        more = f" and {len(seen.strangers) - 3} more" if len(seen.strangers) > 3 else ""
        told = f"{', '.join(seen.strangers[:3])}{more} bear {seen.selector}, so the Service sends them requests, too"
        return Verdict(kind, "False", ReadyReason.FOREIGN_PODS, told)
    passing = [verdict.message for verdict in parts if verdict.passing]
    passing += [*([seen.unexposed] if seen.unexposed else []), *_added(seen)]
    return Verdict(kind, "True", ReadyReason.READY, "; ".join([f"{ready} of {wanted} pods are ready", *passing]))


def deleting(before: SemiPDServiceStatus, generation: int, finalizers: str, now: datetime) -> SemiPDServiceStatus:
    """A service that is to go, and that someone's finalizers hold: nothing is done for it any more."""
    message = f"it is being deleted, and waits for {finalizers}"
    return _said(before, generation, [Verdict(ConditionType.READY, "False", ReadyReason.DELETING, message)], now)


def rejected(before: SemiPDServiceStatus, generation: int, message: str, now: datetime) -> SemiPDServiceStatus:
    """Where this version can make nothing of a specification: what was shown before, SpecAccepted and Ready False."""
    verdicts = [
        Verdict(kind, "False", SpecReason.INVALID_SPEC, message)
        for kind in (ConditionType.SPEC_ACCEPTED, ConditionType.READY)
    ]
    return _said(before, generation, verdicts, now)


def _said(before: SemiPDServiceStatus, generation: int, verdicts: list[Verdict], now: datetime) -> SemiPDServiceStatus:
    kept = [condition for condition in before.conditions if condition.type not in {v.type for v in verdicts}]
    conditions = (*kept, *(verdict.condition(before, now, generation) for verdict in verdicts))
    return before.model_copy(update={"reason": str(verdicts[-1].reason), "conditions": conditions})


def write_due(
    before: SemiPDServiceStatus,
    after: SemiPDServiceStatus,
    *,
    now: datetime,
    last_write: datetime | None,
    slo_period: timedelta,
) -> bool:
    """The write budget: everything but observed latencies at once, those at most once in `slo_period`. A clock that was
    set back makes nobody wait."""
    if before == after:
        return False
    if _without_observations(before) != _without_observations(after):
        return True
    return last_write is None or not timedelta() <= now - last_write < slo_period


def _without_observations(status: SemiPDServiceStatus) -> SemiPDServiceStatus:
    if status.slo is None:
        return status
    slo = status.slo
    bare = SLOStatus(
        percentile=slo.percentile, window_seconds=slo.window_seconds, ttft=_bare(slo.ttft), tpot=_bare(slo.tpot)
    )
    return status.model_copy(update={"slo": bare})


def _bare(metric: MetricStatus | None) -> MetricStatus | None:
    return metric and MetricStatus(target_milliseconds=metric.target_milliseconds)
