"""The whole status from what is observed, and the rule by which it is written.

Conditions have positive polarity; Ready carries the reason of the first condition that is not True. SLOAttained,
SLOFeasible and ScalingReady stay outside of it: a service that is slow, or of a fixed size, still serves.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from semipd_agent.contract import PartitionState
from semipd_operator.api.v1alpha1.status import MetricStatus, SemiPDServiceStatus, SLOStatus
from semipd_operator.reasons import (
    ConditionType,
    PodsReason,
    PodTrouble,
    ReadyReason,
    ScalingReason,
    SpecReason,
    SplitReason,
    remedy,
)
from semipd_operator.render.names import ENGINE_CONTAINER
from semipd_operator.status import words
from semipd_operator.status.disruption import of_successor, preempted
from semipd_operator.status.model import ON_THE_WAY, failure, model_ready, model_status
from semipd_operator.status.observed import Observed, PodView, Problem
from semipd_operator.status.partition import partition_applied, partition_status
from semipd_operator.status.pods import SILENCE_SECONDS
from semipd_operator.status.probes import of_the_engine
from semipd_operator.status.scaling import contested, scaling_ready
from semipd_operator.status.slo import slo_attained, slo_feasible, slo_status
from semipd_operator.status.verdict import Verdict

ENDED_SECONDS = 600.0
"""For so long a pod that was evicted or failed explains why there are too few."""


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


def missing_pods(seen: Observed) -> Problem | None:
    """Why pods are missing or not ready: their own words, else the API server's that does not let them be, else what
    took the last one."""
    for pod in seen.live_pods:
        if not pod.ready and (problem := _trouble(seen, pod)):
            told = of_successor(seen.preempted, pod, problem)
            return replace(told, message=f"{pod.name}: {told.message}")
    whole = len(seen.ready_pods) >= seen.service.spec.replicas and not seen.outdated_pods
    return seen.refusal or (None if whole else _lately_ended(seen))


def _lately_ended(seen: Observed) -> Problem | None:
    """What took the last one: its successor is on its way, and may go the same way. While a rollout is under way and an
    old pod serves, only one of the new template is a cause."""
    rolls = bool(seen.ready_pods and seen.outdated_pods)
    told = [pod for pod in seen.pods if not rolls or pod.template_hash == seen.template_hash]
    # One that was deleted (a roll, a scale-down) ends as Failed for a moment, if its engine had not come up.
    ended = [
        (pod.ended_at, pod.name, pod.problem) for pod in told if pod.ended_at and pod.problem and not pod.terminating
    ]
    if took := preempted(None if rolls else seen.preempted):
        at, name, problem = took
        ended.append((at - seen.ahead, name, problem))
    for when, name, problem in sorted(ended, key=lambda one: one[:2], reverse=True):
        if (seen.now - when).total_seconds() <= ENDED_SECONDS:
            many = f" ({len(ended)} pods have ended so far)" if len(ended) > 1 else ""
            return replace(problem, message=f"{name}: {problem.message}{many}")
    return None


def _trouble(seen: Observed, pod: PodView) -> Problem | None:
    if pod.node_problem:
        return pod.node_problem
    if pod.problem and not pod.problem.over(seen.now):
        return pod.problem
    if found := failure(seen, pod):
        return found
    report = seen.report(pod)
    if report and report.partition.state is PartitionState.FAILED:
        return Problem(str(report.partition.reason), report.partition.message)
    if report and report.engine.reason == PodTrouble.API_NOT_RESPONDING:
        return Problem(PodTrouble.API_NOT_RESPONDING, report.engine.message)
    if shut := _without_keys(seen, pod):
        return shut
    if pod.complaint:
        return pod.complaint
    if pod.held and _for_long(seen, pod.held_since):
        return pod.held
    # A pod that served, and misses two probes on a busy node, has nothing that needs someone.
    both = (seen.agent(pod).serves_since, pod.ready_since)
    if pod.unproved and report and all(_for_long(seen, since) for since in both):
        return of_the_engine(pod)
    if said := seen.unheard(pod):
        return _silent(seen, said)
    if _for_long(seen, pod.preparing_since):
        claims = f" (claim {pod.claims})" if pod.claims else ""
        return Problem(
            PodTrouble.VOLUME_NOT_MOUNTED,
            f"node {pod.node} has made no container of it yet: its volumes{claims}, network or runtime are not there",
        )
    return pod.unseen if _for_long(seen, pod.unseen_since) else None


def _silent(seen: Observed, said: str) -> Problem:
    """`said`: why it was not heard."""
    message = f"its engine is not ready, and nothing is known of it: {said}"
    containers = seen.service.spec.pod_template.spec.get("containers")
    own = [one for one in containers if isinstance(one, dict)] if isinstance(containers, list) else []
    if any(one.get("name") == ENGINE_CONTAINER and one.get("command") for one in own):
        what = (
            "Have spec.podTemplate leave command of container engine as it is, or end in `semipd-agent` and its args."
        )
        return Problem(SplitReason.AGENT_UNREACHABLE, f"{message}; spec.podTemplate replaces its command", remedy=what)
    return Problem(SplitReason.AGENT_UNREACHABLE, message)


def _closed(seen: Observed) -> Problem | None:
    """A pod that is ready and admits nobody: it answers whoever asks, with 401. Or one that is ready for a moment,
    between two crashes of a container that nobody probes."""
    for pod in seen.ready_pods:
        crashes = pod.problem if pod.problem and pod.problem.until and not pod.problem.over(seen.now) else None
        if shut := _without_keys(seen, pod) or crashes:
            return replace(shut, message=f"{pod.name}: {shut.message}")
    return None


def _without_keys(seen: Observed, pod: PodView) -> Problem | None:
    """The engine knows the file; whoever reads it here knows the Secret."""
    report, source = seen.report(pod), seen.service.spec.service.api_key_secret_ref
    if report is None or report.engine.reason != PodTrouble.NO_API_KEY:
        return None
    if source is None:
        return Problem(PodTrouble.NO_API_KEY, report.engine.message)
    said = f"Secret {source.name}, key {source.key}: {report.engine.message}"
    return Problem(PodTrouble.NO_API_KEY, said, f"secret/{source.name}")


def _for_long(seen: Observed, since: datetime | None) -> bool:
    return since is not None and (seen.now - since).total_seconds() > SILENCE_SECONDS


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
    if closed := _closed(seen):
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
    """The write budget: everything but observed latencies at once, those at most once in `slo_period`."""
    if before == after:
        return False
    if _without_observations(before) != _without_observations(after):
        return True
    return last_write is None or now - last_write >= slo_period


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
