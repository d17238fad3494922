"""Workers that hold several rungs (``mps-green``), in real processes on the CPU: a move starts nobody, and what a rung
has lost is told. The limit itself is a no-op here; core, resident, messages and loops are those that serve on a GPU."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.fake_model import reference
from tests.engine.harness import Engine, engine_for
from tests.engine.load import Load
from tests.engine.rung_driver import SLOW, ask, assert_one_worker_at_a_time, in_force, routed, wait_ready
from tests.engine.rungs import DEVICE_SMS

from e2e.lib.waiting import wait_until
from semipd_engine.contract import (
    GREEN_RUNGS,
    Enforcement,
    EngineState,
    PacingMode,
    PartitionPlan,
    Phase,
    PhaseLimit,
    Split,
)

pytestmark = pytest.mark.engine

HELD: dict[int, int | str] = {0: DEVICE_SMS, 1: 24, 2: 56, 3: 80, 4: "WrongProducts: as the rung wished"}
PERCENTS = {100: 0, 20: 1, 40: 2, 60: 3, 80: 4}


def limit(percent: int, sms: int | None = None, daemon: int = 1) -> PhaseLimit:
    found = HELD[PERCENTS[percent]]
    return PhaseLimit(
        percent=percent,
        environment={
            "CUDA_MPS_PIPE_DIRECTORY": f"/run/spd/{daemon}/p",
            GREEN_RUNGS: "20,40,60,80",
            "SEMIPD_FAKE_RUNGS": json.dumps(HELD),
            "SEMIPD_FAKE_SMS": str(DEVICE_SMS),
        },
        rung=PERCENTS[percent],
        sm_count=sms or (found if isinstance(found, int) else 104),
    )


def plan_of(prefill: PhaseLimit, decode: PhaseLimit, daemon: int = 1) -> PartitionPlan:
    return PartitionPlan(
        split=Split(prefill=prefill.percent, decode=decode.percent),
        enforcement=Enforcement.SPATIAL_CAP,
        mode=PacingMode.RUNGS,
        prefill=prefill,
        decode=decode,
        whole=limit(100, daemon=daemon),
    )


def plan(prefill: int, decode: int, daemon: int = 1) -> PartitionPlan:
    return plan_of(limit(prefill, daemon=daemon), limit(decode, daemon=daemon), daemon)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    for engine in engine_for(tmp_path, SLOW, EngineState.STARTING, await_partition=True, prepare_seconds=60.0):
        wait_until(lambda engine=engine: "first partition" in engine.snapshot().message, describe="a loaded model")
        assert ask(engine, plan(60, 40)) == 1
        wait_ready(engine, 2)
        yield engine


def pids(engine: Engine) -> dict[Phase, int]:
    return {worker.phase: worker.pid for worker in engine.snapshot().workers}


def test_one_worker_of_each_phase_holds_every_rung_and_tells_the_sms_of_the_one_in_force(engine: Engine) -> None:
    workers = wait_ready(engine, 2)
    assert {key: worker.sm_count for key, worker in workers.items()} == {
        (Phase.PREFILL, 60): 80,
        (Phase.DECODE, 40): 56,
    }
    assert all(worker.lost_rungs == {4: HELD[4]} for worker in workers.values())
    title = Path(f"/proc/{pids(engine)[Phase.DECODE]}/cmdline").read_bytes()
    assert title.rstrip(b"\0").decode() == "semipd: decode", "it has no percentage of its own"


def test_a_move_under_load_starts_nobody_and_is_in_force_with_the_answer(engine: Engine) -> None:
    before, load = pids(engine), Load(engine)
    try:
        for epoch, split in enumerate([(20, 60), (100, 40), (60, 100), (40, 40)], start=2):
            assert ask(engine, plan(*split)) == epoch, "every rung is warm"
            assert routed(engine.snapshot()) == dict(zip(Phase, split, strict=True))
            goal = len(load.finished) + 8
            wait_until(lambda goal=goal: len(load.finished) >= goal or bool(load.wrong))
    finally:
        load.stop()
    assert load.wrong == [] and pids(engine) == before
    assert engine.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}
    assert_one_worker_at_a_time(engine)


def test_a_phase_alone_has_the_whole_device_by_the_number_of_its_rung(engine: Engine) -> None:
    client = engine.client()
    streams = [client.add([index], max_tokens=300) for index in range(4)]
    wait_until(lambda: all(len(s.tokens) > 10 for s in streams), describe="running streams")
    prompt = client.add([7, *range(380)], max_tokens=2)
    for stream in [*streams, prompt]:
        assert stream.wait().tokens == reference(stream.prompt, stream.sampling.max_tokens)
    sent = [record for record in engine.records("plan") if record["phase"] == Phase.DECODE]
    assert {record["rung"] for record in sent} == {0, 2} and len({record["pid"] for record in sent}) == 1
    assert {record["rung"] for record in engine.records("plan") if record["phase"] == Phase.PREFILL} <= {0, 3}


@pytest.mark.parametrize(
    ("cold", "reason", "words"),
    [
        (limit(80), "RungLost", "decode worker under 80 %: WrongProducts: as the rung wished"),
        (limit(20, sms=32), "SMCountMismatch", "decode worker under 20 %: it sees 24 SMs, 32 are expected"),
    ],
    ids=["lost", "other SMs"],
)
def test_a_rung_that_a_worker_does_not_hold_is_refused_at_once(
    engine: Engine, cold: PhaseLimit, reason: str, words: str
) -> None:
    before = pids(engine)
    assert ask(engine, plan_of(limit(60), cold)) == 1
    refused = wait_until(lambda: engine.snapshot().refused, describe="a refusal")
    assert (refused.split_epoch, refused.reason, refused.message) == (2, reason, words)
    assert in_force(engine.snapshot()) == (60, 40) and pids(engine) == before
    assert ask(engine, plan(20, 60)) == 3, "the next one is in force"
    assert engine.snapshot().refused is None


def test_a_first_partition_whose_rung_is_lost_serves_on_the_whole_device_and_says_so(tmp_path: Path) -> None:
    for engine in engine_for(tmp_path, SLOW, EngineState.STARTING, await_partition=True, prepare_seconds=60.0):
        wait_until(lambda engine=engine: "first partition" in engine.snapshot().message, describe="a loaded model")
        ask(engine, plan(60, 80))
        engine.wait_state()
        refused = wait_until(lambda engine=engine: engine.snapshot().refused, describe="a refusal")
        assert (refused.split_epoch, refused.reason) == (1, "RungLost")
        wait_until(lambda engine=engine: routed(engine.snapshot()) == {Phase.PREFILL: 60, Phase.DECODE: 100})
        stream = engine.client().add([1, 2, 3], max_tokens=20)
        assert stream.wait().tokens == reference([1, 2, 3], 20)


def test_a_worker_that_dies_takes_its_rungs_along_and_its_successor_has_them(engine: Engine) -> None:
    before, load = pids(engine), Load(engine)
    try:
        wait_until(lambda: len(load.finished) >= 2, describe="a load")
        os.kill(before[Phase.DECODE], signal.SIGKILL)
        wait_until(lambda: engine.snapshot().restarts["decode"] == 1, describe="a successor")
        goal = len(load.finished) + 8
        wait_until(lambda: len(load.finished) >= goal or bool(load.wrong))
    finally:
        load.stop()
    assert load.wrong == [] and in_force(engine.snapshot()) == (60, 40)
    after = wait_ready(engine, 2)
    assert after[Phase.DECODE, 40].sm_count == 56 and after[Phase.DECODE, 40].lost_rungs == {4: HELD[4]}
    assert pids(engine)[Phase.PREFILL] == before[Phase.PREFILL]
    assert ask(engine, plan(60, 60)) == 2, "every rung is warm again"


def test_another_daemon_makes_every_rung_cold_and_both_workers_new(engine: Engine) -> None:
    before, load = pids(engine), Load(engine)
    try:
        ask(engine, plan(60, 40, daemon=2))
        wait_until(lambda: engine.snapshot().split_epoch == 2, describe="the new daemon's workers")
        goal = len(load.finished) + 8
        wait_until(lambda: len(load.finished) >= goal or bool(load.wrong))
    finally:
        load.stop()
    assert load.wrong == []
    after = wait_ready(engine, 2)
    assert not {worker.pid for worker in after.values()} & set(before.values())
