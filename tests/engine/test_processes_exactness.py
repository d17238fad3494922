"""Real core, resident and workers around the fake model: every token is right, whatever is going on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.fake_model import reference
from tests.engine.fake_resident import RAISE, STALE
from tests.engine.harness import Engine, engine_for

from e2e.lib.waiting import wait_until
from semipd_engine.contract import Drain, EngineState, Phase, SetPartition, Split
from semipd_engine.cpu_plan import cpu_plan

pytestmark = pytest.mark.engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    yield from engine_for(tmp_path)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Engine]:
    yield from engine_for(tmp_path, {"SEMIPD_FAKE_TOKEN_MS": "2", "SEMIPD_FAKE_STEP_MS": "5"})


def test_many_streams_at_once_are_exact(engine: Engine) -> None:
    client, rng = engine.client(), random.Random(0)
    shared = [rng.randrange(4000) for _ in range(64)]
    streams = []
    for index in range(60):
        length = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130, 200)[index % 12]
        prompt = (shared if index % 3 == 0 else [])[:length] + [rng.randrange(4000) for _ in range(length)]
        streams.append(client.add(prompt, max_tokens=1 + index % 60))
    for stream in streams:
        stream.wait()
        assert stream.error is None and stream.finish_reason == "length"
        assert stream.tokens == reference(stream.prompt, stream.sampling.max_tokens)
    assert any(stream.cached_tokens for stream in streams)
    assert max(record["batch"] for record in engine.records("step") if record["phase"] == "decode") >= 8
    engine.wait_idle()


def test_kv_pressure_preempts_and_completes(tmp_path: Path) -> None:
    for engine in engine_for(tmp_path, kv_cache_memory=400 * 4 + 16 * 4 * 12):  # one full sequence and a little
        client = engine.client()
        streams = [client.add([index] * 30, max_tokens=150) for index in range(8)]
        for stream in streams:
            assert stream.wait().tokens == reference(stream.prompt, 150)
        assert sum(stream.preemptions for stream in streams) > 0
        engine.wait_idle()


def test_stop_ids_limits_and_refusals(engine: Engine) -> None:
    client = engine.client()
    expected = reference([1, 2, 3], 10)
    stopped = client.add([1, 2, 3], max_tokens=10, stop_token_ids=(expected[4],)).wait()
    assert stopped.tokens == expected[: expected.index(expected[4]) + 1] and stopped.finish_reason == "stop"
    assert len(client.add([7] * 390, max_tokens=100).wait().tokens) == 10  # up to max_model_len
    assert client.add([7] * 400, max_tokens=9).wait().tokens == reference([7] * 400, 1)  # which has no position
    assert "max_model_len" in (client.add([7] * 401, max_tokens=1).wait().error or "")
    assert "empty" in (client.add([], max_tokens=1).wait().error or "")
    finished = engine.observation().finished
    assert [f.finish_reason for f in finished] == ["stop", "length", "length", "error", "error"]
    assert finished[0].ttft_seconds is not None and finished[0].tpot_seconds is not None
    assert engine.observation(since=finished[-1].cursor + 1).finished == ()


def test_decode_goes_on_during_prefill(slow: Engine) -> None:
    """A 300-token prompt takes 0.6 s in five chunks, 0.1 s each; four streams begin steps of theirs within them."""
    client = slow.client()
    streams = [client.add([index], max_tokens=390) for index in range(4)]
    wait_until(lambda: all(len(s.tokens) > 5 for s in streams), describe="four running streams")
    prompt = client.add(list(range(300)), max_tokens=2).wait()
    assert prompt.first_token_at is not None
    steps = slow.records("step")
    prefill = [r for r in steps if r["phase"] == "prefill" and r["tokens"] > 10]
    within = [d for d in steps if d["phase"] == "decode" and any(p["begin"] < d["begin"] < p["end"] for p in prefill)]
    assert len(prefill) == 5
    assert len(within) >= 10, "in one process none could"
    for stream in streams:
        assert stream.wait().tokens == reference(stream.prompt, 390)


def test_abort_in_every_state_frees_all_blocks(slow: Engine) -> None:
    client = slow.client()
    decoding = client.add([1, 2, 3], max_tokens=390)
    wait_until(lambda: decoding.tokens, describe="a decoding request")
    chunked = client.add(list(range(350)), max_tokens=300)
    wait_until(lambda: any(r["tokens"] == 64 for r in slow.records("plan")), describe="a chunked prompt")
    queued = client.add(list(range(350)), max_tokens=300)
    for stream in (queued, chunked, decoding):
        client.abort(stream)
    for stream in (queued, chunked, decoding):
        assert stream.wait().finish_reason == "abort"
    client.abort(decoding)  # once more: nothing happens
    slow.wait_idle()


def test_a_lost_api_aborts_its_requests_only(slow: Engine) -> None:
    doomed, client = slow.client(), slow.client()
    lost = doomed.add([1] * 40, max_tokens=300)
    kept = client.add([2] * 40, max_tokens=60)
    wait_until(lambda: lost.tokens, describe="a running request")
    doomed.close()
    assert kept.wait().tokens == reference(kept.prompt, 60)
    slow.wait_idle()


def test_a_request_that_raises_fails_alone(engine: Engine) -> None:
    client = engine.client()
    prompts = ([9] * 8, [RAISE] * 8, [8])
    streams = [client.add(prompt, max_tokens=40) for prompt in prompts]
    assert "as the prompt wished" in (streams[1].wait().error or "")
    for stream in (streams[0], streams[2]):
        assert stream.wait().tokens == reference(stream.prompt, 40)


def test_a_plan_that_a_worker_finds_stale_is_sent_again(engine: Engine) -> None:
    client = engine.client()
    streams = [client.add(prompt, max_tokens=20) for prompt in ([STALE] * 8, [STALE, 7], [3] * 8)]
    for stream in streams:
        assert stream.wait().tokens == reference(stream.prompt, 20)
    prefill = [record for record in engine.records() if record.get("phase") == "prefill"]
    planned, run = ({r["seq"] for r in prefill if r["event"] == event} for event in ("plan", "step"))
    assert planned - run, "some plan was refused"
    assert not engine.records("worker_lost")


def test_drain_refuses_new_requests_and_finishes_old_ones(slow: Engine) -> None:
    client = slow.client()
    running = client.add([5] * 5, max_tokens=60)
    wait_until(lambda: running.tokens, describe="a running request")
    slow.control(Drain())
    assert "draining" in (client.add([1], max_tokens=1).wait().error or "")
    assert running.wait().tokens == reference(running.prompt, 60)
    assert slow.snapshot().state is EngineState.DRAINING
    wait_until(
        lambda: client.state is not None and not client.state.ready and not client.state.admitting, describe="not ready"
    )


def test_a_plan_without_isolation_puts_prompts_into_decodes_steps_and_the_next_takes_them_out(slow: Engine) -> None:
    client = slow.client()

    def switch(epoch: int, aggregated: bool) -> None:
        """With chunks and rows in flight; then where a prompt is computed."""
        streams = [client.add([epoch, index] * 60, max_tokens=40) for index in range(2)]
        wait_until(lambda: streams[-1].tokens, describe="a running request")
        streams.append(client.add([epoch] * 150, max_tokens=40))
        plan = cpu_plan(Split(), [0]).model_copy(update={"aggregated": aggregated})
        slow.control(SetPartition(split_epoch=epoch, plan=plan))
        streams.append(client.add([epoch] * 200, max_tokens=10))
        for stream in streams:
            assert stream.wait().tokens == reference(stream.prompt, stream.sampling.max_tokens)
        begun = time.monotonic()
        late = client.add([epoch] * 300, max_tokens=2).wait()
        assert late.tokens == reference(late.prompt, 2)
        chunks = [r for r in slow.records("step") if r["begin"] > begun and r["tokens"] > r["batch"]]
        assert {r["phase"] for r in chunks} == {Phase.DECODE if aggregated else Phase.PREFILL}

    for epoch, aggregated in ((1, True), (2, False), (3, True)):
        switch(epoch, aggregated)


def test_unified_mode_is_exact(tmp_path: Path) -> None:
    for engine in engine_for(tmp_path, unified=True):
        client = engine.client()
        streams = [client.add([index] * (1 + 37 * index % 200), max_tokens=50) for index in range(12)]
        for stream in streams:
            assert stream.wait().tokens == reference(stream.prompt, 50)
        pids = {record["pid"] for record in engine.records("plan")}
        assert len(pids) == 1
        assert {w.pid for w in engine.snapshot().workers} == pids
