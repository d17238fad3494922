"""Builds the status report from what the agent knows. Pure; reads no clock and asks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from semipd_agent import __version__
from semipd_agent.config import mixing_refused
from semipd_agent.contract import (
    SLO,
    EnginePhase,
    EngineStatus,
    Identity,
    MetricWindow,
    PartitionReport,
    SLOReport,
    StatusReport,
    StepProfileReport,
    WorkerStatus,
)
from semipd_agent.control import SplitController
from semipd_agent.decisions import wire
from semipd_agent.partitioner import Problem
from semipd_agent.readback import STALE_AFTER
from semipd_agent.slo.attainment import Attainment
from semipd_agent.slo.feasibility import MESSAGES
from semipd_agent.slo.policy import Verdict
from semipd_agent.slo.window import percentile
from semipd_engine.contract import EngineSnapshot, EngineState, WorkerReport, lacked_api_key

MIN_SAMPLES = 5
"""Fewer requests than this in the window say nothing about a percentile."""


@dataclass(frozen=True)
class LauncherState:
    """The engine's launcher, as its supervisor sees it."""

    started: bool = True
    """False: it must not run (a GPU without MPS)."""
    running: bool = True
    crash_loop: bool = False
    refused: bool = False
    """It said that another start cannot help."""
    restarts: int = 0
    message: str = ""


def build(
    controller: SplitController,
    launcher: LauncherState,
    identity: Identity,
    *,
    ready: bool,
    now: float,
    wall: datetime,
    served: bool = False,
    api_problem: str = "",
    memory_problem: str = "",
    key_problem: str = "",
) -> StatusReport:
    """`now` is CLOCK_MONOTONIC seconds, `wall` the same moment in UTC.

    `api_problem`: what is wrong with the api process. `memory_problem`: what was killed for memory since it was ready.
    `key_problem`: why the api admits nobody.
    """
    config = controller.config
    snapshot = controller.snapshot
    fresh = snapshot is not None and now - snapshot.monotonic_time <= STALE_AFTER
    readback = controller.readback
    return StatusReport(
        identity=identity,
        observed_at=wall,
        agent_version=__version__,
        config_generation=config.generation,
        partition=PartitionReport(
            mode=config.partition.mode,
            policy=controller.policy_in_force,
            backend=controller.partitioner.name,
            enforcement=controller.partitioner.enforcement,
            requested=wire(controller.requested),
            quantized=wire(controller.intent.split),
            applied=wire(readback.applied) if readback.applied else None,
            split_epoch=controller.intent.epoch,
            state=readback.state,
            reason=readback.reason,
            message="; ".join(
                filter(
                    None,
                    (
                        controller.partitioner.notice,
                        readback.message
                        or controller.pilot.verdict.message
                        or mixing_refused(config.partition, controller.partitioner),
                    ),
                )
            ),
            changes=controller.changes,
            last_change_time=controller.last_change_time,
        ),
        engine=_judged(
            engine_status(
                snapshot if fresh else None,
                snapshot,
                launcher,
                ready=ready,
                served=served,
                problem=controller.obstacle,
                restarts=controller.restarts.totals(),
            ),
            api_problem,
            memory_problem,
            key_problem,
        ),
        slo=slo_report(
            config.slo,
            controller.attained(config.slo, now),
            controller.pilot.verdict,
            auto=controller.policy_in_force is not None,
            fresh=fresh,
            utilization=controller.pilot.utilization_ratio,
            utilization_rate=controller.pilot.utilization_rate,
            arrivals=controller.pilot.arrivals,
        )
        if config.slo
        else None,
        step_profile=StepProfileReport(
            measured=controller.pilot.profile.steps.measured,
            source=controller.pilot.profile.source,
            message=controller.pilot.profile.message,
        ),
        decisions=controller.log.newest_first(),
        faults=controller.faults.report(),
    )


def engine_status(
    fresh: EngineSnapshot | None,
    last: EngineSnapshot | None,
    launcher: LauncherState,
    *,
    ready: bool,
    served: bool,
    problem: Problem | None,
    restarts: Mapping[str, int],
) -> EngineStatus:
    """State of the engine: the core's own words while it answers, the supervisor's otherwise."""
    model = last.model if last else None
    known = EngineStatus(
        state=EnginePhase.STARTING,
        ready=ready,
        served=served,
        model_name=model.name if model else "",
        architecture=model.architecture if model else "",
        device=model.device if model else "",
        dtype=model.dtype if model else "",
        kernels=model.kernels if model else "",
        kernels_shortfall=model.kernels_shortfall if model else "",
        weight_bytes=model.weight_bytes if model else 0,
        restarts={"launcher": launcher.restarts, **restarts},
    )
    if launcher.refused and not ready:  # a new try loads and loads, and ends the same way
        return known.model_copy(
            update={"state": EnginePhase.FAILED, "reason": "LoadFailed", "message": launcher.message}
        )
    if fresh is not None:
        return known.model_copy(
            update={
                "state": _PHASES[fresh.state],
                "reason": fresh.reason or _REASONS.get(fresh.state, ""),
                "message": fresh.message,
                "load_progress_percent": fresh.load_progress_percent,
                "waiting": fresh.waiting,
                "running": fresh.prefilling + fresh.decoding,
                "kv_used_percent": _kv_used(fresh),
                "workers": tuple(_worker(w) for w in fresh.workers),
            }
        )
    if not launcher.started:
        if problem is None:  # the partitioner is on its way
            return known.model_copy(update={"reason": "Starting"})
        return known.model_copy(
            update={"state": EnginePhase.FAILED, "reason": problem.reason.value, "message": problem.message}
        )
    if launcher.crash_loop:
        return known.model_copy(
            update={"state": EnginePhase.FAILED, "reason": "CrashLoop", "message": launcher.message}
        )
    if last is None:
        return known.model_copy(update={"reason": "Starting", "message": launcher.message})
    if last.state is EngineState.FAILED:  # it stays so until the next attempt says otherwise
        return known.model_copy(
            update={"state": EnginePhase.FAILED, "reason": last.reason or "LoadFailed", "message": last.message}
        )
    if model is None:  # it never had the weights
        return known.model_copy(update={"reason": "Starting", "message": launcher.message})
    message = launcher.message or "the engine's core does not answer"
    return known.model_copy(update={"state": EnginePhase.DEGRADED, "reason": "NotResponding", "message": message})


def _judged(engine: EngineStatus, api_problem: str, memory_problem: str, key_problem: str = "") -> EngineStatus:
    """What core cannot say: that it was killed, that nobody can reach it, and that nobody is admitted."""
    if memory_problem and not engine.ready and engine.state is not EnginePhase.DRAINING:
        return engine.model_copy(
            update={"state": EnginePhase.FAILED, "reason": "OutOfMemory", "message": memory_problem}
        )
    if api_problem and engine.state in (EnginePhase.READY, EnginePhase.DEGRADED):
        return engine.model_copy(
            update={"state": EnginePhase.DEGRADED, "reason": "APINotResponding", "message": api_problem}
        )
    if key_problem and engine.state in (EnginePhase.READY, EnginePhase.DEGRADED):
        return engine.model_copy(update={"state": EnginePhase.DEGRADED, "reason": "NoAPIKey", "message": key_problem})
    if key_problem and engine.state is EnginePhase.FAILED and key_problem in engine.message:
        return engine.model_copy(update={"reason": "NoAPIKey", "message": key_problem})  # with it nothing starts
    if not key_problem and engine.state is EnginePhase.FAILED and lacked_api_key(engine.message):
        told = "the key that it lacked is there: the engine's next start, half a minute away at most, takes it"
        return engine.model_copy(update={"state": EnginePhase.STARTING, "reason": "Starting", "message": told})
    return engine


_PHASES = {
    EngineState.STARTING: EnginePhase.STARTING,
    EngineState.LOADING: EnginePhase.LOADING,
    EngineState.READY: EnginePhase.READY,
    EngineState.DEGRADED: EnginePhase.DEGRADED,
    EngineState.DRAINING: EnginePhase.DRAINING,
    EngineState.FAILED: EnginePhase.FAILED,
}
_REASONS = {
    EngineState.STARTING: "Starting",
    EngineState.LOADING: "Loading",
    EngineState.FAILED: "LoadFailed",
    EngineState.DRAINING: "Draining",
}


def _worker(w: WorkerReport) -> WorkerStatus:
    return WorkerStatus(
        phase=w.phase.value,
        pid=w.pid,
        state=w.state.value,
        generation=w.generation,
        busy=w.busy,
        heartbeat_age_seconds=round(w.heartbeat_age_seconds, 3),
        cpu_seconds=round(w.cpu_seconds, 3),
        sm_count=w.sm_count,
        start_seconds={part: round(seconds, 4) for part, seconds in w.start_seconds.items()},
    )


def _kv_used(snapshot: EngineSnapshot) -> float:
    """Percent of the blocks that are neither free nor a mere cache."""
    blocks = snapshot.blocks
    return round(100 * (blocks.used + blocks.quarantined) / blocks.total, 1) if blocks.total else 0.0


def slo_report(
    slo: SLO,
    seen: Attainment,
    verdict: Verdict,
    *,
    auto: bool,
    fresh: bool,
    utilization: float | None = None,
    utilization_rate: float = 0.0,
    arrivals: int | None = None,
) -> SLOReport:
    """Percentiles and attainment of the window against the targets."""
    ttft = _metric(slo.ttft_milliseconds, seen.ttft, seen.refused, slo.percentile)
    tpot = _metric(slo.tpot_milliseconds, seen.tpot, 0, slo.percentile)
    attained, reason = _attained(ttft, tpot, slo.percentile, fresh)
    feasible = verdict.feasible if auto else None
    unknown = verdict.feasible_reason or "InsufficientTraffic" if auto else "PolicyInactive"
    why = unknown if feasible is None else verdict.feasible_reason or "Feasible"
    return SLOReport(
        percentile=slo.percentile,
        window_seconds=slo.window_seconds,
        ttft=ttft,
        tpot=tpot,
        attained=attained,
        reason=reason,
        attainment_percent=round(100 * seen.joint, 2) if seen.joint is not None else None,
        refused_percent=round(100 * seen.refused / seen.requests, 2) if seen.refused else None,
        feasible=feasible,
        feasible_reason=why,
        feasible_message=MESSAGES.get(why, ""),
        utilization_ratio=round(utilization, 3) if fresh and utilization is not None else None,
        utilization_rate=round(utilization_rate, 4) if fresh and utilization is not None else None,
        arrivals=arrivals if fresh else None,
    )


def _metric(target: int | None, seconds: Sequence[float], refused: int, p: int) -> MetricWindow | None:
    """`refused` requests have no latency, and miss."""
    if target is None:
        return None
    samples = len(seconds) + refused
    met = sum(value <= target / 1000 for value in seconds)
    return MetricWindow(
        target_milliseconds=target,
        observed_milliseconds=round(percentile(seconds, p) * 1000, 3) if len(seconds) >= MIN_SAMPLES else None,
        attainment_percent=round(100 * met / samples, 2) if samples else None,
        samples=samples,
    )


def _attained(ttft: MetricWindow | None, tpot: MetricWindow | None, p: int, fresh: bool) -> tuple[bool | None, str]:
    if not fresh:
        return None, "TelemetryStale"
    for metric, reason in ((ttft, "TTFTAboveTarget"), (tpot, "TPOTAboveTarget")):
        if metric and metric.samples >= MIN_SAMPLES and (metric.attainment_percent or 0.0) < p:
            return False, reason
    known = [m for m in (ttft, tpot) if m is not None]
    if not known or any(m.samples < MIN_SAMPLES for m in known):
        return None, "InsufficientTraffic"
    return True, "Attained"
