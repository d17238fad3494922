"""kill -9 and SIGSTOP of each process under load: what is lost is what the architecture says, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.fake_model import reference
from tests.engine.harness import Engine, engine_for
from tests.engine.load import Load

from e2e.lib.process import runs
from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_engine.contract import Ack, ControlError, EngineOptions, EngineState, Phase, SetPartition, Split
from semipd_engine.cpu_plan import cpu_plan

pytestmark = pytest.mark.engine

KILLS = 30


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    pace = {"SEMIPD_FAKE_TOKEN_MS": "0.3", "SEMIPD_FAKE_STEP_MS": "3"}
    yield from engine_for(tmp_path, pace | {"SEMIPD_FAKE_NO_FORK": str(tmp_path / "no-fork")})


@pytest.mark.parametrize("phase", list(Phase))
def test_killed_workers_lose_and_repeat_no_token(engine: Engine, phase: Phase) -> None:
    load = Load(engine)

    def killed_in_flight() -> list[dict[str, Any]]:
        return [r for r in engine.records("worker_lost") if r["phase"] == phase and r["in_flight"] is not None]

    try:
        rng = random.Random(2)
        deadline = time.monotonic() + 300
        while len(killed_in_flight()) < KILLS and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.02, 0.15))
            engine.wait_state()
            engine.kill_worker(phase)
    finally:
        load.stop()
    assert load.wrong == []
    assert len(load.finished) > 8
    killed = killed_in_flight()
    steps = [record["in_flight"] for record in killed]
    print(f"{len(steps)} {phase} workers killed, each with its step in flight: {steps}")
    assert len(steps) >= KILLS and len(set(steps)) == len(steps), "another step each time"
    assert len({record["pid"] for record in killed}) == len(steps) and {r["ending"] for r in killed} == {"SIGKILL"}
    planned = {record["seq"] for record in engine.records("plan") if record["phase"] == phase}
    assert set(steps) <= planned
    assert engine.snapshot().restarts[phase] >= KILLS
    engine.wait_idle()


def test_a_killed_core_comes_back_to_the_same_weights(engine: Engine) -> None:
    client = engine.client()
    stream = client.add([1] * 30, max_tokens=300)
    wait_until(lambda: stream.tokens, describe="a running stream")
    resident = engine.processes["resident"].pid
    workers = {engine.worker(phase).pid for phase in Phase}
    engine.kill("core")
    assert client.lost.wait(PATIENCE_S)  # the api answers its clients then
    engine.restart("core")
    engine.wait_state()
    assert engine.processes["resident"].poll() is None and engine.processes["resident"].pid == resident
    wait_until(lambda: not any(runs(pid) for pid in workers), describe="the end of the old core's workers")
    again = engine.client().add([1] * 30, max_tokens=40)
    assert again.wait().tokens == reference(again.prompt, 40)


def test_a_killed_resident_loses_no_accepted_request(engine: Engine) -> None:
    client = engine.client()
    streams = [client.add([index] * 50, max_tokens=200) for index in range(6)]
    wait_until(lambda: all(s.tokens for s in streams), describe="running streams")
    workers = {engine.worker(phase).pid for phase in Phase}
    engine.kill("resident")
    wait_until(lambda: not any(runs(pid) for pid in workers), describe="the workers' death")
    wait_until(lambda: engine.snapshot().state is EngineState.DEGRADED, describe="state degraded")
    late = client.add([77] * 20, max_tokens=20)
    engine.restart("resident")
    for stream in [*streams, late]:
        assert stream.wait().tokens == reference(stream.prompt, stream.sampling.max_tokens)
    assert engine.wait_state().restarts["resident"] == 1


def test_a_split_is_applied_by_the_workers_themselves(engine: Engine) -> None:
    cpus = sorted(os.sched_getaffinity(0))

    def set_split(epoch: int, prefill: int, decode: int) -> int:
        plan = cpu_plan(Split(prefill=prefill, decode=decode), cpus)
        reply = engine.control(SetPartition(split_epoch=epoch, plan=plan))
        assert isinstance(reply, Ack)
        return reply.split_epoch

    def applied() -> dict[Phase, int]:
        return {w.phase: w.applied_epoch for w in engine.snapshot().workers}

    assert set_split(3, 60, 40) == 3
    wait_until(lambda: set(applied().values()) == {3}, describe="epoch 3 in both idle workers")
    assert set_split(3, 10, 10) == 3 and set_split(2, 10, 10) == 3  # old epochs change nothing
    assert engine.snapshot().split == Split(prefill=60, decode=40)
    vast = cpu_plan(Split(), cpus).model_copy(update={"granted_cpus": tuple(range(20_000))})
    refused = engine.control(SetPartition(split_epoch=4, plan=vast))
    assert isinstance(refused, ControlError) and "plan" in refused.message  # and epoch 4 is still to come
    assert engine.snapshot().split == Split(prefill=60, decode=40)
    stopped = engine.worker(Phase.DECODE).pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert set_split(4, 30, 70) == 4
        wait_until(lambda: applied()[Phase.PREFILL] == 4, describe="epoch 4 in prefill")
        wait_until(lambda: engine.worker(Phase.DECODE).heartbeat_age_seconds > 2.5, describe="an old heartbeat")
        assert applied()[Phase.DECODE] == 3
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_until(lambda: set(applied().values()) == {4}, describe="epoch 4 in both")
    engine.kill_worker(Phase.DECODE)
    wait_until(lambda: set(applied().values()) == {4}, describe="epoch 4 in the new worker")


def test_a_stopped_worker_does_not_hold_up_the_other_phase(engine: Engine) -> None:
    """Prompts go on while decode is stopped, in a mode in which the phases take turns."""
    plan = cpu_plan(Split(prefill=80, decode=20), sorted(os.sched_getaffinity(0))[:2])
    engine.control(SetPartition(split_epoch=1, plan=plan))
    client = engine.client()
    running = client.add([1], max_tokens=200)
    wait_until(lambda: len(running.tokens) > 3, describe="a running stream")
    stopped = engine.worker(Phase.DECODE).pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert client.add([2] * 200, max_tokens=1).wait().tokens == reference([2] * 200, 1)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert running.wait().tokens == reference([1], 200)


def test_a_model_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken").touch()
    options = EngineOptions(model=tmp_path / "model", run_dir=tmp_path, max_model_len=64, kv_cache_memory=1 << 16)
    engine = Engine(options)
    try:
        snapshot = engine.wait_state(EngineState.FAILED)
        assert snapshot.reason == "InvalidConfig" and "broken on purpose" in snapshot.message
        client = engine.client()
        assert "not loaded" in (client.add([1], max_tokens=1).wait().error or "")
        wait_until(
            lambda: client.state is not None and "broken on purpose" in client.state.message, describe="the message"
        )
        assert engine.processes["resident"].poll() is None  # no crash loop
    finally:
        engine.stop()


def test_too_little_kv_memory_is_refused_with_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    engine = Engine(EngineOptions(model=tmp_path / "model", run_dir=tmp_path, max_model_len=4096, kv_cache_memory=8192))
    try:
        snapshot = engine.wait_state(EngineState.FAILED)
        assert snapshot.reason == "OutOfMemory" and "--kv-cache-memory" in snapshot.message
    finally:
        engine.stop()


def test_a_fork_that_fails_costs_a_pause_and_not_the_weights(engine: Engine, tmp_path: Path) -> None:
    """The machine has no process left for a worker (EAGAIN) for a while."""
    resident, refusal = engine.processes["resident"], tmp_path / "no-fork"
    refusal.touch()
    engine.kill_worker(Phase.DECODE)
    wait_until(lambda: "SpawnFailed" in engine.snapshot().message, describe="the reason")
    assert engine.snapshot().state is EngineState.DEGRADED
    stream = engine.client().add([3] * 8, max_tokens=30)
    refusal.unlink()
    assert stream.wait().tokens == reference(stream.prompt, 30)
    assert resident.poll() is None
    assert engine.wait_state().message == ""


def test_workers_go_first_when_memory_is_short(engine: Engine) -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert all(score(engine.worker(phase).pid) > score(engine.processes["resident"].pid) for phase in Phase)
