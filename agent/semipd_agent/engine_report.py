"""The engine's part of the status report: core's own words while it answers, else what its launcher and its files say.

Pure; reads no clock and asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from semipd_agent.contract import (
    EnginePhase,
    EngineStatus,
    WorkerStatus,
)
from semipd_agent.partitioner import Problem
from semipd_engine.contract import EngineSnapshot, EngineState, WorkerReport, lacked_api_key


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


def judged(engine: EngineStatus, api_problem: str, memory_problem: str, key_problem: str = "") -> EngineStatus:
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
