"""An engine whose workers hold rungs, what its snapshots say of them, and what its log must show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.engine import rungs
from tests.engine.harness import Engine, engine_for

from e2e.lib.waiting import wait_until
from semipd_engine.contract import (
    Ack,
    EngineSnapshot,
    EngineState,
    PartitionPlan,
    Phase,
    SetPartition,
    WorkerReport,
    WorkerState,
)

SLOW = {"SEMIPD_FAKE_TOKEN_MS": "0.3", "SEMIPD_FAKE_STEP_MS": "3", "SEMIPD_FAKE_DEVICE_SMS": str(rungs.DEVICE_SMS)}
Key = tuple[Phase, int]


def on_rungs(folder: Path, prepare_seconds: float) -> Iterator[Engine]:
    """Both phases on their rungs: prefill 60 %, decode 40 %."""
    for engine in engine_for(folder, SLOW, EngineState.STARTING, await_partition=True, prepare_seconds=prepare_seconds):
        wait_until(lambda engine=engine: "first partition" in engine.snapshot().message, describe="a loaded model")
        assert ask(engine, rungs.plan(60, 40)) == 1
        wait_ready(engine, 4)
        yield engine


def ask(engine: Engine, plan: PartitionPlan) -> int:
    """Ask for the next epoch. Returns the epoch in force."""
    snapshot = engine.snapshot()
    used = max(snapshot.split_epoch, snapshot.pending_epoch, snapshot.refused.split_epoch if snapshot.refused else 0)
    reply = engine.control(SetPartition(split_epoch=used + 1, plan=plan))
    assert isinstance(reply, Ack)
    return reply.split_epoch


def ready(snapshot: EngineSnapshot) -> dict[Key, WorkerReport]:
    return {(w.phase, w.percent): w for w in snapshot.workers if w.state is WorkerState.READY}


def wait_ready(engine: Engine, count: int) -> dict[Key, WorkerReport]:
    """That many ready workers, all of the epoch in force."""

    def settled() -> dict[Key, WorkerReport] | None:
        snapshot = engine.snapshot()
        workers = ready(snapshot)
        followed = all(w.applied_epoch == snapshot.split_epoch for w in workers.values())
        return workers if len(workers) == len(snapshot.workers) == count and followed else None

    found: dict[Key, WorkerReport] = wait_until(settled, describe=f"{count} ready workers")
    return found


def in_force(snapshot: EngineSnapshot) -> tuple[int, int]:
    split = snapshot.split
    assert split is not None
    return split.prefill, split.decode


def routed(snapshot: EngineSnapshot) -> dict[Phase, int]:
    return {w.phase: w.percent for w in snapshot.workers if w.routed}


def assert_one_worker_at_a_time(engine: Engine) -> None:
    """From core's own log: no plan of a phase is sent while another one of it is in flight, on whichever worker."""
    flying: dict[str, int] = {}
    lines = engine.records()
    assert len(lines) > 50
    for record in lines:
        phase = record["phase"]
        match record["event"]:
            case "plan":
                assert phase not in flying, record
                flying[phase] = record["pid"]
            case "step" if record["last"]:
                del flying[phase]
            case "worker_lost" if record["in_flight"] is not None:
                assert flying.pop(phase) == record["pid"]
