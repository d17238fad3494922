"""The 0.5 B model through real processes: phases overlap, memory is shared, a split moves CPU time.

Counts and ratios from one run, never absolute times. Timed comparisons are in ``bench/``.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine import proc
from tests.engine.harness import TORCH_RESIDENT, ApiClient, Engine, Stream

from e2e.lib.models import random_model
from e2e.lib.waiting import wait_until
from semipd_engine.contract import DType, EngineOptions, Phase, SetPartition, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.process import PROMPTS_NICENESS

pytestmark = [pytest.mark.engine, pytest.mark.alone]

LONG = 2048
KV_BYTES = 768 << 20


def start(tmp_path: Path, model: Path, **changes: Any) -> Engine:
    given: dict[str, Any] = {
        "max_model_len": 4096,
        "kv_cache_memory": KV_BYTES,
        "dtype": DType.BFLOAT16,
        "prefix_caching": False,
    }
    options = EngineOptions(model=model, run_dir=tmp_path, step_log=tmp_path / "steps.jsonl", **(given | changes))
    engine = Engine(options, TORCH_RESIDENT, OMP_NUM_THREADS="1", GOMP_SPINCOUNT="0")
    engine.wait_state(seconds=120)
    return engine


@pytest.fixture(scope="module")
def small() -> Path:
    return random_model("llama", "small")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Iterator[Engine]:
    engine = start(tmp_path_factory.mktemp("engine"), small)
    yield engine
    engine.stop()


@pytest.fixture
def exact(tmp_path: Path, small: Path) -> Iterator[Engine]:
    """In float32: greedy bfloat16 tokens of random weights change with the number of threads that sum a product."""
    engine = start(tmp_path, small, dtype=DType.FLOAT32)
    yield engine
    engine.stop()


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 8000) for _ in range(length)]


def running_streams(client: ApiClient, count: int, max_tokens: int = 1500) -> list[Stream]:
    """Streams that have their first tokens."""
    streams = [client.add(prompt(32, seed), max_tokens) for seed in range(count)]
    wait_until(lambda: all(len(stream.tokens) >= 3 for stream in streams))
    return streams


def overlap(steps: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """Seconds of `steps` during which one of `others` is in flight."""
    return sum(
        max(0.0, min(step["end"], other["end"]) - max(step["begin"], other["begin"]))
        for step in steps
        for other in others
    )


def decode_during_prefill(engine: Engine) -> tuple[float, int]:
    """A long prompt arrives among four streams: the part of its steps' time during which another step of the streams is
    in flight, and the fewest tokens that a stream got before the prompt's first."""
    client = engine.client()
    streams = running_streams(client, 4)
    asked = time.monotonic()
    long = client.add(prompt(LONG, 99), 2).wait(240)
    first = long.first_token_at
    assert first is not None
    tokens = min(sum(asked < at < first for at in stream.times) for stream in streams)
    for stream in streams:
        client.abort(stream)
    steps = [step for step in engine.records("step") if step["begin"] >= asked]
    chunks = [step for step in steps if step["tokens"] > step["batch"] and step["end"] <= first + 0.1]
    decode = [step for step in steps if step["tokens"] == step["batch"]]
    beside = sum(step["batch"] - 1 for step in chunks)  # rows of the streams in the prompt's steps
    assert sum(step["tokens"] for step in chunks) - beside == LONG
    return overlap(chunks, decode) / sum(step["end"] - step["begin"] for step in chunks), tokens


def test_decode_goes_on_while_a_long_prompt_prefills(engine: Engine) -> None:
    in_flight, tokens = decode_during_prefill(engine)
    assert in_flight >= 0.5  # 0.8 and more on a machine of its own, under 0.01 in one process
    assert tokens >= 10


def test_one_process_fails_that_check_but_each_stream_has_a_row_in_every_step(tmp_path: Path, small: Path) -> None:
    engine = start(tmp_path, small, unified=True)
    try:
        in_flight, tokens = decode_during_prefill(engine)
        chunk = engine.options.chunk_tokens("cpu")
    finally:
        engine.stop()
    assert in_flight < 0.01
    assert tokens >= LONG // chunk


def test_sixteen_requests_decode_in_one_batch(engine: Engine) -> None:
    client = engine.client()
    for stream in [client.add(prompt(24, seed), 24) for seed in range(16)]:
        stream.wait(240)
    assert max(step["batch"] for step in engine.records("step") if step["phase"] == Phase.DECODE) >= 8


def test_there_is_one_copy_of_weights_and_cache(engine: Engine) -> None:
    """With the KV pool in use, a worker's private memory is a fraction of the weights: it inherits the weights and maps
    the pool. All processes together hold the weights once."""
    client = engine.client()
    resident = engine.processes["resident"].pid
    for stream in [client.add(prompt(LONG, seed), 2) for seed in range(2)]:
        stream.wait(240)

    model = engine.snapshot().model
    assert model is not None
    workers = [engine.worker(phase).pid for phase in Phase]
    for pid in workers:
        assert proc.memory_bytes(pid, "Private_Dirty") < 150 << 20
        assert proc.mapped_inodes(pid, "semipd-kv") == {proc.memfd_inode(resident, "semipd-kv")}
    together = sum(proc.memory_bytes(process.pid, "Pss") for process in engine.processes.values())
    together += sum(proc.memory_bytes(pid, "Pss") for pid in workers)
    assert together < 1.15 * model.weight_bytes + KV_BYTES + (600 << 20)


def test_prompts_give_way_to_who_decodes_schedules_and_answers(engine: Engine) -> None:
    """All threads that compute do, also those of a worker that was born after a death: it gives way once, too."""

    def niceness(pid: int) -> set[int]:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        assert 1 < len(tasks) <= len(os.sched_getaffinity(0)), "the threads that compute; CPUs are dealt out to all"
        return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks}

    ours, client = os.getpriority(os.PRIO_PROCESS, 0), engine.client()

    def expect_prefill_alone_gives_way(seed: int) -> None:
        client.add(prompt(24, seed), 4).wait(120)
        assert niceness(engine.worker(Phase.DECODE).pid) == {ours}
        assert niceness(engine.worker(Phase.PREFILL).pid) == {ours + PROMPTS_NICENESS}

    expect_prefill_alone_gives_way(1)
    engine.kill_worker(Phase.PREFILL)
    wait_until(lambda: engine.records("worker_lost"))
    engine.wait_state()
    expect_prefill_alone_gives_way(2)


def test_decode_reads_what_prefill_wrote(exact: Engine) -> None:
    client = exact.client()
    resident = exact.processes["resident"].pid
    tokens = prompt(200, 7)
    baseline = client.add(tokens, 24).wait(120).tokens

    decode = exact.worker(Phase.DECODE).pid
    os.kill(decode, signal.SIGSTOP)  # until the cache is gone
    try:
        disturbed = client.add(tokens, 24)
        wait_until(lambda: disturbed.tokens)
        with proc.memfd(resident, "semipd-kv") as pool:
            pool[:] = bytes(len(pool))
    finally:
        os.kill(decode, signal.SIGCONT)
    assert disturbed.wait(120).tokens != baseline

    assert client.add(tokens, 24).wait(120).tokens == baseline


SECONDS = 20.0


def saturated_cpu_ratio(engine: Engine, split: Split, epoch: int) -> float:
    """Prefill's CPU time over decode's, during `SECONDS` with both phases never idle."""
    engine.control(SetPartition(split_epoch=epoch, plan=cpu_plan(split, sorted(os.sched_getaffinity(0)))))
    while any(engine.worker(phase).applied_epoch < epoch for phase in Phase):
        time.sleep(0.05)
    pids = [engine.worker(phase).pid for phase in Phase]
    before = [proc.cpu_seconds(pid) for pid in pids]
    time.sleep(SECONDS)
    prefill, decode = (proc.cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True))
    return prefill / decode


def test_a_split_moves_cpu_time(engine: Engine) -> None:
    """Both phases saturated: prefill:decode CPU time at 80/20 is at least 6 times that at 20/80.

    What that does to prefill's service time is a timed claim: ``make bench-split``.
    """
    client = engine.client()
    running_streams(client, 4, max_tokens=3000)
    backlog = [client.add(prompt(LONG, 100 + seed), 1) for seed in range(80)]
    favoured = saturated_cpu_ratio(engine, Split(prefill=80, decode=20), epoch=100)
    starved = saturated_cpu_ratio(engine, Split(prefill=20, decode=80), epoch=101)
    assert not backlog[-1].done.is_set(), "prefill ran out of work"
    assert favoured >= 6 * starved
