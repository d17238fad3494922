"""Workers in rungs, as on a GPU under MPS, in real processes on the CPU: warm and cold moves, and a phase alone.

The limit itself is a no-op here; everything around it is the code that serves on a GPU.
"""

from __future__ import annotations

import itertools
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
    ask,
    assert_one_worker_at_a_time,
    in_force,
    on_rungs,
    routed,
    wait_ready,
)

from e2e.lib.process import runs
from e2e.lib.waiting import wait_until
from semipd_agent.slo.preparation import ASSUMED_SECONDS, Preparation
from semipd_engine.contract import (
    EngineState,
    Phase,
    Split,
)

pytestmark = pytest.mark.engine


@pytest.fixture(params=[60.0])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from on_rungs(tmp_path, request.param)


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
    snapshot = engine.snapshot()
    assert routed(snapshot) == {Phase.PREFILL: 60, Phase.DECODE: 40}
    told = Preparation.told(snapshot.workers)
    assert (told.prefill, told.decode) == ((60, 100), (40, 100)), "the agent reads it out of the same reports"
    assert 0 < told.seconds != ASSUMED_SECONDS, "and how long a worker's start takes"
    assert len({w.pid for w in workers.values()}) == 4
    title = Path(f"/proc/{workers[Phase.PREFILL, 60].pid}/cmdline").read_bytes()
    assert title.rstrip(b"\0").decode() == "semipd: prefill 60%"


def test_a_phase_alone_runs_on_its_whole_worker(engine: Engine) -> None:
    """L0, from core's log: whoever is alone has 100 %, and both have their own rungs while both are busy."""
    pids = {w.pid: key for key, w in wait_ready(engine, 4).items()}
    client, numbers = engine.client(), itertools.count()

    def seen_of() -> dict[tuple[str, bool], set[int]]:
        """Rungs that plans went to, by phase and whether it was alone, once both have been busy together."""
        streams = [client.add([index], max_tokens=300) for index in range(4)]
        wait_until(lambda: all(len(s.tokens) > 10 for s in streams), describe="running streams")
        prompt = client.add([next(numbers), *range(380)], max_tokens=2)  # none of it is in the cache
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
                here = records[index : index + 2]
                turn = {r["phase"] for r in here if r["event"] == "plan" and r["at"] == record["at"]}
                seen.setdefault((phase, len(flying | turn) == 1), set()).add(pids[record["pid"]][1])
            elif record["event"] == "step" and record["last"]:
                flying.discard(phase)
        return seen if {(phase, False) for phase in Phase} <= set(seen) else {}

    seen = wait_until(seen_of)  # once, but where this process was held up until the streams had ended
    assert seen[Phase.DECODE, True] == {100} and seen[Phase.DECODE, False] == {40}
    assert seen[Phase.PREFILL, False] == {60} and seen.get((Phase.PREFILL, True), {100}) == {100}
    assert_one_worker_at_a_time(engine)


def test_a_warm_rung_is_in_force_with_the_answer(engine: Engine) -> None:
    before = wait_ready(engine, 4)
    assert Preparation.told(before.values()).takes(Split()) == 0
    assert ask(engine, rungs.plan(100, 100)) == 2  # both are warm: no preparation
    assert routed(engine.snapshot()) == {Phase.PREFILL: 100, Phase.DECODE: 100}
    workers = wait_ready(engine, 2)
    assert {key: w.pid for key, w in workers.items()} == {key: before[key].pid for key in workers}
    wait_until(lambda: not runs(before[Phase.PREFILL, 60].pid), describe="the end of the old rung's worker")
    assert engine.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}


def test_a_cold_rung_is_prepared_while_the_old_one_serves(engine: Engine, tmp_path: Path) -> None:
    before = wait_ready(engine, 4)
    load, warm = Load(engine), tmp_path / "warm"
    try:
        cold = rungs.plan_of(rungs.limit(30, start=str(warm)), rungs.limit(40))
        assert Preparation.told(before.values()).takes(cold.split) > 0
        assert ask(engine, cold) == 1
        finished = len(load.finished)

        def served_meanwhile() -> bool:
            snapshot = engine.snapshot()
            assert (snapshot.split_epoch, snapshot.pending_epoch, in_force(snapshot)) == (1, 2, (60, 40))
            assert routed(snapshot)[Phase.PREFILL] == 60
            assert snapshot.state is EngineState.READY
            return len(load.finished) > finished + 8

        wait_until(served_meanwhile)
        warm.touch()
        wait_until(lambda: engine.snapshot().split_epoch == 2, describe="the cold rung in force")
        workers = wait_ready(engine, 4)
        assert routed(engine.snapshot()) == {Phase.PREFILL: 30, Phase.DECODE: 40}
        after = Preparation.told(workers.values())
        assert (after.takes(cold.split), after.takes(Split(prefill=60, decode=40)) > 0) == (0, True), "now 60 % is cold"
        kept = [(Phase.PREFILL, 100), (Phase.DECODE, 40), (Phase.DECODE, 100)]
        assert [workers[key].pid for key in kept] == [before[key].pid for key in kept]
        wait_until(lambda: not runs(before[Phase.PREFILL, 60].pid), describe="the old worker's end")
    finally:
        load.stop()
    assert load.wrong == []
    assert_one_worker_at_a_time(engine)
