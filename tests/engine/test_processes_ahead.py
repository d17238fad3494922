"""Decode's plans sent ahead, between real processes: every token is right, whoever stops, joins, moves or dies."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.fake_model import reference
from tests.engine.harness import Engine, engine_for
from tests.engine.load import Load

from semipd_engine.contract import Phase, SetPartition, Split
from semipd_engine.core.engine_core import PLANS_AHEAD
from semipd_engine.cpu_plan import cpu_plan

pytestmark = pytest.mark.engine

KILLS = 10


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    yield from engine_for(tmp_path, {PLANS_AHEAD: "1", "SEMIPD_FAKE_TOKEN_MS": "0.3", "SEMIPD_FAKE_STEP_MS": "3"})


def sent_and_run(engine: Engine) -> tuple[set[int], set[int]]:
    """Numbers of decode's plans that were sent behind one that ran, and of those of them that were run."""
    decode = [record for record in engine.records() if record["phase"] == Phase.DECODE]
    sent = {record["seq"] for record in decode if record["event"] == "plan" and record["behind"]}
    return sent, sent & {record["seq"] for record in decode if record["event"] == "step"}


def test_steady_streams_go_from_plan_to_plan(engine: Engine) -> None:
    """Nobody joins after the first moments: nearly all of the plans are sent while the one before them runs."""
    client, rng = engine.client(), random.Random(3)
    prompts = [[rng.randrange(4000) for _ in range(5 + index)] for index in range(6)]
    lengths = [150, 200, 250, 300, 310, 330]
    stops = [reference(prompts[index], lengths[index])[-7 * (index + 1)] for index in range(3)]
    streams = [
        client.add(prompt, max_tokens=length, stop_token_ids=tuple(stops[index : index + 1]))
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    for index, stream in enumerate(streams):
        stream.wait()
        expected = reference(stream.prompt, stream.sampling.max_tokens)
        if index < 3:
            expected = expected[: expected.index(stops[index]) + 1]
        assert stream.tokens == expected and stream.finish_reason == ("stop" if index < 3 else "length")
    sent, run = sent_and_run(engine)
    plans = [r for r in engine.records("plan") if r["phase"] == Phase.DECODE]
    print(f"{len(plans)} plans of decode, {len(sent)} sent ahead, {len(run)} of them run")
    assert len(run) >= 20, "330 tokens are 41 plans of eight"
    engine.wait_idle()


def test_a_plan_that_is_not_asked_for_is_not_sent(tmp_path: Path) -> None:
    for engine in engine_for(tmp_path):
        stream = engine.client().add([1, 2, 3], max_tokens=100)
        assert stream.wait().tokens == reference(stream.prompt, 100)
        assert sent_and_run(engine) == (set(), set())


def test_killed_workers_and_moves_lose_and_repeat_no_token(engine: Engine) -> None:
    load = Load(engine)

    def killed() -> int:
        return sum(r["phase"] == Phase.DECODE and r["in_flight"] is not None for r in engine.records("worker_lost"))

    try:
        rng, deadline = random.Random(2), time.monotonic() + 300
        while killed() < KILLS and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.05, 0.3))
            engine.wait_state()
            epoch = engine.snapshot().split_epoch + 1
            split = Split(prefill=rng.choice((40, 60, 100)), decode=rng.choice((50, 100)))
            engine.control(SetPartition(split_epoch=epoch, plan=cpu_plan(split, [0])))
            engine.kill_worker(Phase.DECODE)
    finally:
        load.stop()
    assert load.wrong == [] and len(load.finished) > 8
    sent, run = sent_and_run(engine)
    print(f"{killed()} workers killed, {len(sent)} plans sent ahead, {len(run)} of them run")
    assert killed() >= KILLS and len(run) >= KILLS and sent - run, "some were run, and some came to nothing"
    engine.wait_idle()


def test_blocks_that_are_short_are_given_up_for_older_streams(tmp_path: Path) -> None:
    pool = 400 * 4 + 16 * 4 * 12  # one full sequence and a little
    for engine in engine_for(tmp_path, {PLANS_AHEAD: "1"}, kv_cache_memory=pool):
        client = engine.client()
        streams = [client.add([index] * 30, max_tokens=150) for index in range(8)]
        for stream in streams:
            assert stream.wait().tokens == reference(stream.prompt, 150)
        assert sum(stream.preemptions for stream in streams) > 0 and sent_and_run(engine)[1]
        engine.wait_idle()
