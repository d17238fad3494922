"""Which split is in force, judged from the workers' own reports. Pure; asks nobody and never echoes what was asked.

A worker reports the epoch of the plan that it last executed under. The split that belongs to this epoch is the applied
one, if both phases agree and both answer. Of a phase's workers those count that its steps are routed to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from semipd_agent.contract import PartitionReason, PartitionState
from semipd_agent.partitioner.base import Partitioner
from semipd_engine.contract import EngineSnapshot, Phase, Split, WorkerReport, WorkerState

STALE_AFTER = 3.0
"""Seconds after which a heartbeat (sent at least once a second) or a snapshot counts as lost."""


@dataclass(frozen=True)
class Intent:
    """What the agent wants in force."""

    epoch: int
    split: Split
    since: float
    """CLOCK_MONOTONIC seconds."""


@dataclass(frozen=True)
class Readback:
    state: PartitionState
    reason: PartitionReason
    message: str = ""
    applied: Split | None = None

    @property
    def settled(self) -> bool:
        return self.state is PartitionState.APPLIED


def workers_by_phase(snapshot: EngineSnapshot) -> dict[Phase, list[WorkerReport]]:
    """Ready workers of each phase."""
    ready: dict[Phase, list[WorkerReport]] = {phase: [] for phase in Phase}
    for worker in snapshot.workers:
        if worker.state is WorkerState.READY:
            ready[worker.phase].append(worker)
    return ready


def read_back(
    intent: Intent,
    splits: Mapping[int, Split],
    snapshot: EngineSnapshot | None,
    partitioner: Partitioner,
    now: float,
) -> Readback:
    """Judge one snapshot. `splits` maps the epochs sent so far to their splits; `now` is CLOCK_MONOTONIC seconds."""
    unknown = PartitionState.UNKNOWN
    if (problem := partitioner.health()) is not None:
        return Readback(PartitionState.FAILED, problem.reason, problem.message)
    if not partitioner.ready:
        return Readback(unknown, PartitionReason.ENGINE_NOT_READY, f"{partitioner.name} starts")
    if snapshot is None or now - snapshot.monotonic_time > STALE_AFTER:
        return Readback(unknown, PartitionReason.ENGINE_NOT_READY, "the engine does not answer")
    workers = workers_by_phase(snapshot)
    silent = [w for ws in workers.values() for w in ws if w.heartbeat_age_seconds >= STALE_AFTER]
    if silent:
        # In the same words at each look: other ones would be a write of the status each time.
        who = ", ".join(f"{w.phase} worker {w.pid} silent for more than {STALE_AFTER:.0f} s" for w in silent)
        return Readback(unknown, PartitionReason.WORKER_NOT_RESPONDING, who)
    everyone = [w for ws in workers.values() for w in ws if w.routed]
    missing = [phase.value for phase in Phase if not any(w.phase is phase for w in everyone)]
    refused = snapshot.refused
    if refused is not None and refused.split_epoch == intent.epoch:
        said = f"{intent.split} could not be prepared: {refused.reason}: {refused.message}"
        stays = None if missing else _rungs(everyone)
        return Readback(PartitionState.FAILED, PartitionReason.PREPARATION_FAILED, said, stays)
    if missing:
        return Readback(unknown, PartitionReason.ENGINE_NOT_READY, f"no ready worker for {', '.join(missing)}")
    epochs = {w.applied_epoch for w in everyone}
    applied = splits.get(next(iter(epochs))) if len(epochs) == 1 else None
    if epochs != {intent.epoch} or snapshot.split_epoch != intent.epoch:
        behind = ", ".join(f"{w.phase} at epoch {w.applied_epoch}" for w in everyone if w.applied_epoch != intent.epoch)
        message = f"epoch {intent.epoch} ({intent.split}) in force at core: "
        message += f"{snapshot.split_epoch}; {behind or 'workers agree'}"
        if now - intent.since > partitioner.settle_seconds:
            return Readback(PartitionState.FAILED, PartitionReason.READBACK_MISMATCH, message, applied)
        return Readback(PartitionState.ADJUSTING, PartitionReason.ADJUSTING, message, applied)
    problems = [p for w in everyone if (p := partitioner.verify(w, intent.split)) is not None]
    if problems:
        return Readback(PartitionState.FAILED, problems[0].reason, "; ".join(p.message for p in problems))
    return Readback(PartitionState.APPLIED, PartitionReason.APPLIED, applied=applied)


def _rungs(workers: list[WorkerReport]) -> Split:
    """The split of the rungs that the phases' routed workers were started under."""
    percent = {worker.phase: worker.percent for worker in workers}
    return Split(prefill=percent[Phase.PREFILL], decode=percent[Phase.DECODE])
