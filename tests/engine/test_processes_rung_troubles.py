"""Rungs that do not prove themselves; workers, daemons and residents that end: the old rung serves, nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine import rungs
from tests.engine.fake_model import reference
from tests.engine.harness import Engine, engine_for
from tests.engine.load import Load
from tests.engine.rung_driver import (
    SLOW,
    Key,
    ask,
    assert_one_worker_at_a_time,
    in_force,
    on_rungs,
    ready,
    wait_ready,
)

from e2e.lib.process import runs
from e2e.lib.waiting import wait_until
from semipd_engine.contract import (
    EngineOptions,
    EngineState,
    Phase,
    SetPartition,
    WorkerReport,
    WorkerState,
)

pytestmark = pytest.mark.engine


@pytest.fixture(params=[60.0])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from on_rungs(tmp_path, request.param)


@pytest.mark.parametrize(
    ("cold", "reason", "words"),
    [
        (rungs.limit(30, start="unfit"), "WarmUpFailed", "as the rung wished"),
        (rungs.limit(30, start="die"), "WorkerDied", "its log says why"),
        (rungs.limit(30, sees=rungs.DEVICE_SMS), "SMCountMismatch", "not a client of MPS"),
        (rungs.limit(30, sees=20), "SMCountMismatch", "sees 20 SMs, 38 are expected"),
    ],
    ids=["unfit", "dies", "outside MPS", "wrong share"],
)
def test_a_rung_that_does_not_prove_itself_changes_nothing(
    engine: Engine, cold: rungs.PhaseLimit, reason: str, words: str
) -> None:
    assert_refused(engine, cold, reason, words)


@pytest.mark.parametrize("engine", [8.0], indirect=True)
def test_a_rung_that_hangs_changes_nothing(engine: Engine) -> None:
    assert_refused(engine, rungs.limit(30, start="600"), "PrepareTimeout", "within 8 s")


def assert_refused(engine: Engine, cold: rungs.PhaseLimit, reason: str, words: str) -> None:
    before = wait_ready(engine, 4)
    client = engine.client()
    running = client.add([3] * 20, max_tokens=300)
    assert ask(engine, rungs.plan_of(rungs.limit(60), cold)) == 1
    refused = wait_until(lambda: engine.snapshot().refused, describe="a refusal")
    assert (refused.split_epoch, refused.reason) == (2, reason)
    assert words in refused.message and "decode worker under 30 %" in refused.message
    assert running.wait().tokens == reference(running.prompt, 300)
    workers = wait_ready(engine, 4)
    assert {key: w.pid for key, w in workers.items()} == {key: w.pid for key, w in before.items()}
    snapshot = engine.snapshot()
    assert (snapshot.split_epoch, snapshot.pending_epoch, snapshot.state) == (1, 0, EngineState.READY)
    engine.control(SetPartition(split_epoch=2, plan=rungs.plan(60, 20)))  # the same epoch again: refused already
    assert engine.snapshot().pending_epoch == 0
    ask(engine, rungs.plan(60, 20))  # a new one is a new attempt
    wait_until(lambda: engine.snapshot().split_epoch == 3, describe="the next epoch in force")
    assert engine.snapshot().refused is None
    expected = {before[key].pid for key in before if key != (Phase.DECODE, 40)}
    assert {w.pid for w in wait_ready(engine, 4).values()} > expected


def test_a_first_partition_that_cannot_serve_says_so(tmp_path: Path) -> None:
    """Nothing to fall back on: the engine stays up, never ready, and names the reason; a better epoch mends it."""
    for engine in engine_for(tmp_path, SLOW, state=EngineState.STARTING, await_partition=True):
        wait_until(lambda engine=engine: "first partition" in engine.snapshot().message, describe="a loaded model")
        outside = rungs.limit(60, sees=rungs.DEVICE_SMS)
        assert ask(engine, rungs.plan_of(outside, rungs.limit(40))) == 1
        refused = wait_until(lambda engine=engine: engine.snapshot().refused, describe="a reason")
        assert (refused.split_epoch, refused.reason) == (1, "SMCountMismatch")
        ask(engine, rungs.plan(60, 40, daemon=2))
        wait_until(lambda engine=engine: engine.snapshot().split_epoch == 2, describe="the second epoch")
        engine.wait_state()
        assert engine.snapshot().refused is None


@pytest.mark.parametrize("key", [(Phase.PREFILL, 60), (Phase.PREFILL, 100), (Phase.DECODE, 40), (Phase.DECODE, 100)])
def test_a_killed_worker_of_any_rung_costs_no_token(engine: Engine, key: Key) -> None:
    load = Load(engine)
    rng = random.Random(3)
    try:
        for _ in range(8):
            worker = wait_ready(engine, 4)[key]
            time.sleep(rng.uniform(0.02, 0.1))
            os.kill(worker.pid, signal.SIGKILL)
            wait_until(lambda pid=worker.pid: not runs(pid), describe="its death")
    finally:
        load.stop()
    assert load.wrong == [] and len(load.finished) > 8
    wait_until(lambda: engine.snapshot().restarts[key[0]] == 8, describe="core's word of the last death")
    engine.wait_idle()
    assert_one_worker_at_a_time(engine)


def test_a_new_daemon_replaces_every_worker(engine: Engine) -> None:
    before = wait_ready(engine, 4)
    load = Load(engine)
    try:
        os.kill(before[Phase.DECODE, 40].pid, signal.SIGKILL)  # the old daemon's fault takes a client with it
        ask(engine, rungs.plan(60, 40, daemon=2))
        wait_until(lambda: engine.snapshot().split_epoch == 2, describe="the new environment in force")
        workers = wait_ready(engine, 4)
        assert not {w.pid for w in workers.values()} & {w.pid for w in before.values()}
        for worker in before.values():
            wait_until(lambda pid=worker.pid: not runs(pid), describe="the old workers' end")
    finally:
        load.stop()
    assert load.wrong == []
    assert_one_worker_at_a_time(engine)


def test_switches_kills_and_a_new_resident_lose_no_token(engine: Engine) -> None:
    """Everything at once: warm and cold switches, refused ones, kills of any worker, and of the resident once."""
    load, rng = Load(engine), random.Random(5)
    splits = [(60, 40), (100, 100), (30, 80), (60, 100), (20, 20)]
    try:
        for turn in range(24):
            if turn % 6 == 5:
                ask(engine, rungs.plan_of(rungs.limit(10, start="unfit"), rungs.limit(40)))
            else:
                ask(engine, rungs.plan(*rng.choice(splits), daemon=1 + turn // 8))
            time.sleep(rng.uniform(0.05, 0.3))
            living = [worker.pid for worker in ready(engine.snapshot()).values()]
            if turn % 3 == 0 and living:
                os.kill(rng.choice(living), signal.SIGKILL)
            if turn == 12:
                engine.kill("resident")
                engine.restart("resident")
    finally:
        load.stop()
    assert load.wrong == [] and len(load.finished) > 8
    last = rungs.plan(60, 40, daemon=9)
    ask(engine, last)
    wait_until(
        lambda: engine.snapshot().split == last.split and not engine.snapshot().pending_epoch, describe="the last one"
    )
    wait_ready(engine, 4)
    engine.wait_idle()
    assert_one_worker_at_a_time(engine)


def test_a_refused_split_leaves_a_stopped_engine_clean(tmp_path: Path) -> None:
    """A worker that is being prepared when core stops does not outlive it."""
    options = EngineOptions(
        model=tmp_path, run_dir=tmp_path, max_model_len=64, kv_cache_memory=1 << 16, await_partition=True
    )
    engine = Engine(options, **SLOW)
    try:
        wait_until(lambda: (tmp_path / "control.sock").exists() and engine.snapshot().model, describe="a loaded model")
        ask(engine, rungs.plan_of(rungs.limit(60), rungs.limit(40, start="60")))
        hanging = wait_until(
            lambda: [w.pid for w in engine.snapshot().workers if w.state is WorkerState.STARTING and w.pid],
            describe="a start",
        )
    finally:
        engine.stop()
    assert not any(runs(pid) for pid in hanging)


@pytest.mark.parametrize("engine", [5.0], indirect=True)
def test_a_worker_that_must_be_ended_is_shown_until_somebody_has(engine: Engine) -> None:
    """Its rung gives the agent time to have MPS end it; meanwhile nothing is signalled, and the others serve."""
    client = engine.client()
    hanging = rungs.limit(20, start="3600").model_copy(update={"terminate_seconds": 600.0})
    ask(engine, rungs.plan_of(rungs.limit(60), hanging))

    def ending() -> WorkerReport | None:
        return next((w for w in engine.snapshot().workers if w.ending), None)

    shown: WorkerReport = wait_until(ending, describe="a worker that is to be ended")
    assert shown.phase is Phase.DECODE and runs(shown.pid)
    assert client.add([5] * 20, 30).wait().error is None
    assert runs(shown.pid), "it has ten minutes"
    os.kill(shown.pid, signal.SIGTERM)  # what MPS does to a client ends it, too
    wait_until(lambda: ending() is None and not runs(shown.pid), describe="its end")
    refused = engine.snapshot().refused
    assert refused is not None and refused.reason == "PrepareTimeout" and in_force(engine.snapshot()) == (60, 40)
