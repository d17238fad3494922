"""The model's way into the pods: pending, downloading, loading, loaded, or failed and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from semipd_agent.contract import EnginePhase
from semipd_operator.api.v1alpha1.model import ModelSpec
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.api.v1alpha1.status import ModelFailure, ModelStatus, SemiPDServiceStatus
from semipd_operator.reasons import ConditionType, ModelReason, ModelTrouble, PodTrouble, ReadyReason, known
from semipd_operator.render.names import ENGINE_CONTAINER
from semipd_operator.render.pod import served_name
from semipd_operator.status import words
from semipd_operator.status.observed import Observed, PodView, Problem
from semipd_operator.status.verdict import Verdict

State = Literal["Pending", "Downloading", "Loading", "Loaded", "Failed"]

_PROGRESS_STEP = 10
"""Percent; finer steps would only be writes."""
ON_THE_WAY = (ModelReason.PENDING, ModelReason.DOWNLOADING, ModelReason.LOADING)
_HAS_WEIGHTS = (EnginePhase.READY, EnginePhase.DEGRADED, EnginePhase.DRAINING)


def pod_state(seen: Observed, pod: PodView) -> State:
    if failure(seen, pod):
        return "Failed"
    report = seen.report(pod)
    # What a resident loaded has a name; an engine that drains or is away may never have got so far.
    if pod.ready or (report and report.engine.architecture and report.engine.state in _HAS_WEIGHTS):
        return "Loaded"
    if pod.served and report is None:  # silent now: what it had loaded it has not let go
        return "Loaded"
    if pod.started and not _lacks_keys(seen, pod):
        return "Loading"
    return "Downloading" if pod.downloading else "Pending"


def failure(seen: Observed, pod: PodView) -> Problem | None:
    """Why the model cannot come into this pod: its download, or what its engine said."""
    if pod.model_problem and not pod.model_problem.over(seen.now):
        found = pod.model_problem
        return found if known(found.reason) else replace(found, remedy=ModelTrouble.DOWNLOAD_FAILED.remedy)
    report = seen.report(pod)
    if report and report.engine.state is EnginePhase.FAILED and not _lacks_keys(seen, pod):
        return _failed(report.engine.reason or ModelTrouble.LOAD_FAILED, report.engine.message)
    killed = pod.problem if pod.problem and pod.problem.reason == ModelTrouble.OUT_OF_MEMORY else None
    # Of another container it is none of the model's.
    if killed and killed.detail == ENGINE_CONTAINER and not killed.over(seen.now):
        return killed
    return None


def _lacks_keys(seen: Observed, pod: PodView) -> bool:
    """Whether the engine does not start for that: nothing of the model's."""
    report = seen.report(pod)
    return bool(report and report.engine.state is EnginePhase.FAILED and report.engine.reason == PodTrouble.NO_API_KEY)


def _failed(reason: str, message: str) -> Problem:
    """A newer engine may have a reason of its own."""
    return Problem(reason, message, remedy="" if known(reason) else ModelTrouble.LOAD_FAILED.remedy)


def model_ready(seen: Observed) -> Verdict:
    kind = ConditionType.MODEL_READY
    for pod in seen.live_pods:
        if problem := failure(seen, pod):
            return Verdict.of(kind, replace(problem, detail=""), f"{pod.name}: {problem.message}")
    states = [pod_state(seen, pod) for pod in seen.live_pods]
    unheard = ((pod.name, said) for pod in seen.live_pods if not pod.ready and (said := seen.unheard(pod)))
    more = next((f"; of {name} nothing is known: {said}" for name, said in unheard), "")
    if "Loaded" in states:
        said = f"{states.count('Loaded')} of {len(states)} pods have it loaded{more}"
        reports = ((pod, seen.report(pod)) for pod in seen.live_pods if pod_state(seen, pod) == "Loaded")
        slow = ((pod.name, report.engine.kernels_shortfall) for pod, report in reports if report)
        if found := next((f"{name}: {why}" for name, why in slow if why), ""):
            return Verdict(kind, "True", ModelReason.SLOW_KERNELS, f"{said}; {found}")
        return Verdict(kind, "True", ModelReason.LOADED, said)
    if shut := next((pod for pod in seen.live_pods if _lacks_keys(seen, pod)), None):
        return Verdict(
            kind, "Unknown", ModelReason.PENDING, f"{shut.name}: the engine has not begun: it has no API key"
        )
    if "Loading" in states:
        return Verdict(kind, "False", ModelReason.LOADING, f"the engine loads the weights{more}")
    if "Downloading" in states:
        return Verdict(kind, "False", ModelReason.DOWNLOADING, "the init container `model` downloads the weights")
    if seen.service.spec.replicas == 0:
        return Verdict(kind, "Unknown", ReadyReason.SCALED_TO_ZERO, "spec.replicas is 0")
    return Verdict(kind, "Unknown", ModelReason.PENDING, "no pod has started")


def _revision(model: ModelSpec) -> str:
    return (model.revision or "main") if model.uri.startswith("hf://") else ""


def resolved_revision(service: SemiPDService, status: SemiPDServiceStatus) -> str:
    """The commit that the service's pods run from, once one has said so, and until the specification asks for another
    model or revision. Empty: not known."""
    model, known = service.spec.model, status.model
    if known is None or (known.uri, known.revision) != (model.uri, _revision(model)):
        return ""
    return known.resolved_revision


def _resolved_by_a_pod(seen: Observed) -> str:
    current = (pod for pod in seen.live_pods if pod.template_hash == seen.template_hash)
    return next((pod.model_revision for pod in current if pod.model_revision), "")


def _shown(percent: int) -> int:
    """Whatever an agent says."""
    return min(100, max(0, percent)) // _PROGRESS_STEP * _PROGRESS_STEP


def model_status(seen: Observed) -> ModelStatus:
    order: list[State] = ["Failed", "Pending", "Downloading", "Loading", "Loaded"]
    states = [pod_state(seen, pod) for pod in seen.live_pods]
    reports = [report for pod in seen.live_pods if (report := seen.report(pod))]
    engine = reports[0].engine if reports else None
    progress = [r.engine.load_progress_percent for r in reports if r.engine.load_progress_percent is not None]
    failed = next(((pod, found) for pod in seen.live_pods if (found := failure(seen, pod))), None)
    model = seen.service.spec.model
    return ModelStatus(
        uri=model.uri,
        revision=_revision(model),
        resolved_revision=resolved_revision(seen.service, seen.previous) or _resolved_by_a_pod(seen),
        served_name=served_name(seen.service),
        state=min(states, key=order.index, default="Pending"),
        load_progress_percent=_shown(min(progress)) if progress else None,
        architecture=words.told(engine.architecture, 128) if engine else "",
        dtype=words.told(engine.dtype, 128) if engine else "",
        device=words.told(engine.device, 128) if engine else "",
        last_failure=ModelFailure(
            pod=failed[0].name,
            reason=words.reason(failed[1].reason),
            message=words.told(failed[1].message),
            exit_code=failed[1].exit_code,
        )
        if failed
        else None,
    )
