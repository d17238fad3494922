"""Workers in rungs, as on a GPU under MPS, in real processes on the CPU: switch, roll back, L0, kill; no token is lost.

The limit itself is a no-op here; everything around it is the code that serves on a GPU.
"""

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

from e2e.lib.waiting import wait_until
from semipd_engine.contract import (
    Ack,
    EngineOptions,
    EngineSnapshot,
    EngineState,
    PartitionPlan,
    Phase,
    SetPartition,
    WorkerReport,
    WorkerState,
)

pytestmark = pytest.mark.engine

SLOW = {"SEMIPD_FAKE_TOKEN_MS": "0.3", "SEMIPD_FAKE_STEP_MS": "3", "SEMIPD_FAKE_DEVICE_SMS": str(rungs.DEVICE_SMS)}
Key = tuple[Phase, int]


@pytest.fixture(params=[60.0])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Both phases on their rungs: prefill 60 %, decode 40 %. The parameter is --prepare-seconds."""
    waiting = EngineState.STARTING
    for engine in engine_for(tmp_path, SLOW, waiting, await_partition=True, prepare_seconds=request.param):
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


def wait_ready(engine: Engine, count: int, seconds: float = 60) -> dict[Key, WorkerReport]:
    """That many ready workers, all of the epoch in force."""

    def settled() -> dict[Key, WorkerReport] | None:
        snapshot = engine.snapshot()
        workers = ready(snapshot)
        followed = all(w.applied_epoch == snapshot.split_epoch for w in workers.values())
        return workers if len(workers) == len(snapshot.workers) == count and followed else None

    found: dict[Key, WorkerReport] = wait_until(settled, seconds, f"{count} ready workers")
    return found


def in_force(snapshot: EngineSnapshot) -> tuple[int, int]:
    split = snapshot.split
    assert split is not None
    return split.prefill, split.decode


def routed(snapshot: EngineSnapshot) -> dict[Phase, int]:
    return {w.phase: w.percent for w in snapshot.workers if w.routed}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


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


def test_no_worker_is_started_before_the_first_partition(tmp_path: Path) -> None:
    for engine in engine_for(tmp_path, SLOW, state=EngineState.STARTING, await_partition=True):
        wait_until(lambda engine=engine: "first partition" in engine.snapshot().message, describe="a loaded model")
        time.sleep(0.3)
        snapshot = engine.snapshot()
        assert (snapshot.state, snapshot.workers, snapshot.split_epoch) == (EngineState.STARTING, (), 0)
        assert snapshot.model is not None and snapshot.model.sm_count == rungs.DEVICE_SMS
        assert ask(engine, rungs.plan(60, 40)) == 1
        engine.wait_state()


def test_two_rungs_of_each_phase_are_warm_and_say_what_they_see(engine: Engine) -> None:
    workers = wait_ready(engine, 4)
    assert set(workers) == {(Phase.PREFILL, 60), (Phase.PREFILL, 100), (Phase.DECODE, 40), (Phase.DECODE, 100)}
    assert {key: w.sm_count for key, w in workers.items()} == {key: rungs.sms(key[1]) for key in workers}
    assert routed(engine.snapshot()) == {Phase.PREFILL: 60, Phase.DECODE: 40}
    assert len({w.pid for w in workers.values()}) == 4
    title = Path(f"/proc/{workers[Phase.PREFILL, 60].pid}/cmdline").read_bytes()
    assert title.rstrip(b"\0").decode() == "semipd: prefill 60%"


def test_a_phase_alone_runs_on_its_whole_worker(engine: Engine) -> None:
    """L0, from core's log: whoever is alone has 100 %, and both have their own rungs while both are busy."""
    pids = {w.pid: key for key, w in wait_ready(engine, 4).items()}
    client = engine.client()
    streams = [client.add([index], max_tokens=200) for index in range(4)]
    wait_until(lambda: all(len(s.tokens) > 10 for s in streams), describe="running streams")
    prompt = client.add(list(range(380)), max_tokens=2).wait()
    for stream in [*streams, prompt]:
        assert stream.wait().tokens == reference(stream.prompt, stream.sampling.max_tokens)
    flying: set[str] = set()
    seen: dict[tuple[str, bool], set[int]] = {}
    records = engine.records()
    for index, record in enumerate(records):
        phase = record["phase"]
        if record["event"] == "plan":
            flying.add(phase)
            # The two plans of one turn of the loop carry the same time: each knows of the other.
            turn = {r["phase"] for r in records[index : index + 2] if r["event"] == "plan" and r["at"] == record["at"]}
            seen.setdefault((phase, len(flying | turn) == 1), set()).add(pids[record["pid"]][1])
        elif record["event"] == "step" and record["last"]:
            flying.discard(phase)
    assert seen[Phase.DECODE, True] == {100} and seen[Phase.DECODE, False] == {40}
    assert seen[Phase.PREFILL, False] == {60} and seen.get((Phase.PREFILL, True), {100}) == {100}
    assert_one_worker_at_a_time(engine)


def test_a_warm_rung_is_in_force_with_the_answer(engine: Engine) -> None:
    before = wait_ready(engine, 4)
    assert ask(engine, rungs.plan(100, 100)) == 2  # both are warm: no preparation
    assert routed(engine.snapshot()) == {Phase.PREFILL: 100, Phase.DECODE: 100}
    workers = wait_ready(engine, 2)
    assert {key: w.pid for key, w in workers.items()} == {key: before[key].pid for key in workers}
    wait_until(lambda: not alive(before[Phase.PREFILL, 60].pid), describe="the end of the old rung's worker")
    assert engine.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}


def test_a_cold_rung_is_prepared_while_the_old_one_serves(engine: Engine) -> None:
    before = wait_ready(engine, 4)
    load = Load(engine)
    try:
        cold = rungs.plan_of(rungs.limit(30, start="3"), rungs.limit(40))
        assert ask(engine, cold) == 1
        finished, looks = len(load.finished), 0
        while (snapshot := engine.snapshot()).split_epoch == 1:
            assert snapshot.pending_epoch == 2 and in_force(snapshot) == (60, 40)
            assert routed(snapshot)[Phase.PREFILL] == 60
            assert snapshot.state is EngineState.READY
            looks += 1
            time.sleep(0.1)
        assert looks > 3 and len(load.finished) > finished
        assert snapshot.split_epoch == 2
        workers = wait_ready(engine, 4)
        assert routed(engine.snapshot()) == {Phase.PREFILL: 30, Phase.DECODE: 40}
        kept = [(Phase.PREFILL, 100), (Phase.DECODE, 40), (Phase.DECODE, 100)]
        assert [workers[key].pid for key in kept] == [before[key].pid for key in kept]
        wait_until(lambda: not alive(before[Phase.PREFILL, 60].pid), describe="the old worker's end")
    finally:
        load.stop()
    assert load.wrong == []
    assert_one_worker_at_a_time(engine)


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
            wait_until(lambda pid=worker.pid: not alive(pid), describe="its death")
    finally:
        load.stop()
    assert load.wrong == [] and len(load.finished) > 8
    assert engine.snapshot().restarts[key[0]] == 8
    counts = engine.snapshot().blocks
    assert counts.used == counts.quarantined == 0
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
            wait_until(lambda pid=worker.pid: not alive(pid), describe="the old workers' end")
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
    counts = engine.snapshot().blocks
    assert counts.used == counts.quarantined == 0
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
    assert not any(alive(pid) for pid in hanging)


@pytest.mark.parametrize("engine", [2.0], indirect=True)
def test_a_worker_that_must_be_ended_is_shown_until_somebody_has(engine: Engine) -> None:
    """Its rung gives the agent time to have MPS end it; meanwhile nothing is signalled, and the others serve."""
    client = engine.client()
    hanging = rungs.limit(20, start="3600").model_copy(update={"terminate_seconds": 600.0})
    ask(engine, rungs.plan_of(rungs.limit(60), hanging))

    def ending() -> WorkerReport | None:
        return next((w for w in engine.snapshot().workers if w.ending), None)

    shown: WorkerReport = wait_until(ending, describe="a worker that is to be ended")
    assert shown.phase is Phase.DECODE and alive(shown.pid)
    assert client.add([5] * 20, 30).wait(60).error is None
    assert alive(shown.pid), "it has ten minutes"
    os.kill(shown.pid, signal.SIGTERM)  # what MPS does to a client ends it, too
    wait_until(lambda: ending() is None and not alive(shown.pid), describe="its end")
    refused = engine.snapshot().refused
    assert refused is not None and refused.reason == "PrepareTimeout" and in_force(engine.snapshot()) == (60, 40)
