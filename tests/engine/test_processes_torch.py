"""The tiny real model through real processes: tokens equal `transformers` across splits, their changes, and kills."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from tests.engine import devices, proc
from tests.engine.harness import TORCH_RESIDENT, Engine, Stream
from tests.engine.model_driver import random_prompt

from e2e.lib.models import random_model
from e2e.lib.reference import reference
from e2e.lib.waiting import wait_until
from semipd_engine.contract import Device, DType, EngineOptions, Phase, SetPartition, Split
from semipd_engine.core.engine_core import PLANS_AHEAD
from semipd_engine.cpu_plan import cpu_plan

MODEL = "qwen2"
VOCABULARY = 4096
MOST_TOKENS = 48
LENGTHS = (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 100, 129, 200)


@pytest.fixture(scope="module")
def model() -> Path:
    return random_model(MODEL)


@pytest.fixture(scope="module")
def split_engine(model: Path, tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Iterator[Engine]:
    yield from start(model, tmp_path_factory.mktemp("split"), device, unified=False)


@pytest.fixture
def unified_engine(model: Path, tmp_path: Path, device: torch.device) -> Iterator[Engine]:
    yield from start(model, tmp_path, device, unified=True)


def start(model: Path, tmp_path: Path, device: torch.device, unified: bool, **environment: str) -> Iterator[Engine]:
    engine = Engine(
        EngineOptions(
            model=model,
            run_dir=tmp_path,
            step_log=tmp_path / "steps.jsonl",
            device=Device(device.type),
            dtype=DType.FLOAT32,
            max_model_len=1024,
            kv_cache_memory=256 << 20,
            prefill_chunk_tokens=32,
            prefix_caching=False,
            unified=unified,
        ),
        TORCH_RESIDENT,
        **environment,
    )
    try:
        engine.wait_state(seconds=120)
        yield engine
    finally:
        engine.stop()


def set_split(engine: Engine, x: int, y: int) -> None:
    epoch = engine.snapshot().split_epoch + 1
    plan = cpu_plan(Split(prefill=x, decode=y), sorted(os.sched_getaffinity(0)))
    engine.control(SetPartition(split_epoch=epoch, plan=plan))


def prompts() -> list[list[int]]:
    return [random_prompt(length, VOCABULARY, seed=length) for length in LENGTHS]


@lru_cache
def expected(model: Path, prompt: tuple[int, ...]) -> list[int]:
    torch.set_num_threads(1)  # two cores are shared with the engine under test
    return reference(model).greedy(prompt, MOST_TOKENS)[0]


def assert_exact(model: Path, streams: list[Stream]) -> None:
    for stream in streams:
        tokens = expected(model, tuple(stream.prompt))[: stream.sampling.max_tokens]
        assert stream.wait(120).tokens == tokens, f"prompt of {len(stream.prompt)} tokens"


def test_a_forked_worker_says_what_its_start_took(split_engine: Engine, device: torch.device) -> None:
    """What the resident did before the fork is not its start's."""
    wanted = ["launch", "runner"]
    if device.type == "cuda":
        wanted = ["launch", "context", "attach", "kernels", "warm_up", "products", "runner"]
    assert all(list(worker.start_seconds) == wanted for worker in split_engine.snapshot().workers)


def test_sixteen_at_a_time_are_exact(split_engine: Engine, model: Path) -> None:
    client = split_engine.client()
    assert_exact(model, [client.add(prompt, 24) for prompt in prompts()])


def test_plans_sent_ahead_are_exact(model: Path, tmp_path: Path, device: torch.device) -> None:
    """On a GPU they always are."""
    for engine in start(model, tmp_path, device, unified=False, **{PLANS_AHEAD: "1"}):
        client = engine.client()
        assert_exact(model, [client.add(prompt, MOST_TOKENS) for prompt in prompts()])
        assert sum(record["behind"] for record in engine.records("plan")) > 3


def test_one_process_mode_is_exact(unified_engine: Engine, model: Path) -> None:
    client = unified_engine.client()
    assert_exact(model, [client.add(prompt, 24) for prompt in prompts()])


def test_a_changing_split_changes_no_token(split_engine: Engine, model: Path) -> None:
    client = split_engine.client()
    streams: list[Stream] = []

    def over() -> bool:
        return all(stream.done.is_set() for stream in streams)

    def tokens() -> int:
        return sum(len(stream.tokens) for stream in streams)

    for split in 2 * [(80, 20), (50, 50), (20, 80), (100, 100), (30, 20)]:
        if over():
            streams.extend(client.add(prompt, MOST_TOKENS) for prompt in prompts())
        epoch, before = split_engine.snapshot().split_epoch, tokens()
        set_split(split_engine, *split)
        wait_until(lambda epoch=epoch: split_engine.snapshot().split_epoch > epoch, describe=f"split {split}")
        wait_until(lambda before=before: tokens() > before or over(), describe="tokens under it")
    assert_exact(model, streams)


@pytest.mark.parametrize("phase", list(Phase))
def test_kills_of_real_workers_change_no_token(
    split_engine: Engine, model: Path, phase: Phase, device: torch.device
) -> None:
    """Until three of them, on a GPU one, have died with a step in flight: whoever comes late to it tries again."""
    client = split_engine.client()
    streams: list[Stream] = []

    def count(event: str) -> int:
        found = [record for record in split_engine.records(event) if record["phase"] == phase]
        return sum(event == "step" or record["in_flight"] is not None for record in found)

    def over() -> bool:
        return all(stream.done.is_set() for stream in streams)

    wanted = count("worker_lost") + (3 if device.type == "cpu" else 1)  # a GPU's worker takes seconds to start

    def killed() -> bool:
        if over():
            streams.extend(client.add(prompt, MOST_TOKENS) for prompt in prompts())
        steps = count("step")
        wait_until(lambda: count("step") > steps + 1 or over(), describe="two more steps")
        if split_engine.worker(phase).busy or device.type == "cuda":
            split_engine.kill_worker(phase)
        return count("worker_lost") >= wanted

    wait_until(killed, 300)
    assert_exact(model, streams)


@pytest.mark.alone
@pytest.mark.parametrize("device", [devices.CPU], indirect=True)
def test_quanta_move_cpu_time(split_engine: Engine) -> None:
    """Both phases saturated: the ratio of their CPU times at 80/20 is at least six times that at 20/80."""
    client = split_engine.client()
    stop = threading.Event()

    def saturate(length: int, tokens: int, depth: int) -> None:
        pending: list[Stream] = []
        seeds = itertools.count(length)
        while not stop.is_set():
            pending = [stream for stream in pending if not stream.done.is_set()]
            while len(pending) < depth:
                pending.append(client.add(random_prompt(length, VOCABULARY, next(seeds)), tokens))
            time.sleep(0.005)

    threads = [threading.Thread(target=saturate, args=args) for args in ((5, 900, 4), (400, 1, 3))]
    for thread in threads:
        thread.start()
    ratio = {}
    try:
        wait_until(lambda: split_engine.snapshot().decoding >= 4, describe="running streams")
        pids = [split_engine.worker(phase).pid for phase in Phase]
        for x, y in ((80, 20), (20, 80)):
            set_split(split_engine, x, y)
            time.sleep(0.5)
            before = [proc.cpu_seconds(pid) for pid in pids]
            time.sleep(5)
            prefill, decode = (proc.cpu_seconds(p) - b for p, b in zip(pids, before, strict=True))
            ratio[x] = prefill / decode
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert ratio[80] >= 6 * ratio[20], ratio
