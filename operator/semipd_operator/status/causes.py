"""Why pods are missing, not ready, or ready and of no use: of all that is seen of them, what comes first. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from semipd_agent.contract import PartitionState
from semipd_operator.reasons import PodTrouble, SplitReason
from semipd_operator.render.names import ENGINE_CONTAINER
from semipd_operator.status.disruption import of_successor, preempted
from semipd_operator.status.model import failure
from semipd_operator.status.observed import Observed, PodView, Problem
from semipd_operator.status.pods import SILENCE_SECONDS
from semipd_operator.status.probes import of_the_engine

ENDED_SECONDS = 600.0
"""For so long a pod that was evicted or failed explains why there are too few."""


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
    if keyless := _without_keys(seen, pod):
        return keyless
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


def shut(seen: Observed) -> Problem | None:
    """A pod that is ready and admits nobody: it answers whoever asks, with 401. Or one that is ready for a moment,
    between two crashes of a container that nobody probes."""
    for pod in seen.ready_pods:
        crashes = pod.problem if pod.problem and pod.problem.until and not pod.problem.over(seen.now) else None
        if found := _without_keys(seen, pod) or crashes:
            return replace(found, message=f"{pod.name}: {found.message}")
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
