"""With compiled kernels a row's bits depend on its own tokens and on the weights alone.

So tokens and log-probabilities are the same to the last bit: alone and in a crowd, however a step is cut, after a
recompute, under any split, after a worker's death. In bfloat16, too, where a sum in another order gives another token
within a few steps. The twins (plain torch) promise nothing of the kind: without compiled kernels this is skipped.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.engine.harness import TORCH_RESIDENT, Engine, Stream
from tests.engine.model_driver import Driver, Generation, greedy, random_prompt

from e2e.lib.models import random_model
from e2e.lib.waiting import wait_until
from semipd_engine.contract import DType, EngineOptions, Phase, SetPartition, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.kernels import choose

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(choose("cpu").name == "reference", reason="no compiled kernels here: see `make venv`"),
]
VOCABULARY, TOKENS = 4096, 24
LENGTHS = (1, 17, 63, 64, 65, 100, 150, 200)


class Budget:
    """A pacer whose quanta are so short that every stage of a step is cut somewhere."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = itertools.cycle(seconds)

    @contextmanager
    def quantum(self) -> Iterator[float]:
        yield next(self._seconds)


def bits(request: Generation) -> tuple[list[int], list[float]]:
    return request.tokens, request.logprobs


@pytest.fixture(params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest) -> Path:
    return random_model(request.param)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_is_the_same_alone_in_a_crowd_cut_and_recomputed(model: Path, dtype: torch.dtype) -> None:
    prompts = [random_prompt(length, VOCABULARY, length) for length in LENGTHS]

    def driver(seed: int, *budget: float) -> Driver:
        return Driver(model, dtype, pacer=Budget(*budget), seed=seed)

    alone = []
    for prompt in prompts:
        one = driver(1, 1e9)
        request = one.request(prompt, greedy(TOKENS))
        one.generate([request], max_steps=TOKENS)
        alone.append(bits(request))
    try:
        torch.set_num_threads(2)
        crowd = driver(2, 3e-5, 2e-4, 1e9)
        requests = [crowd.request(prompt, greedy(TOKENS)) for prompt in prompts]
        strangers = [crowd.request(random_prompt(9 + i, VOCABULARY, 50 + i), greedy(TOKENS)) for i in range(8)]
        mixed = requests + strangers
        random.Random(3).shuffle(mixed)
        crowd.generate(mixed, chunk_tokens=48, max_steps=3)
    finally:
        torch.set_num_threads(1)
    assert [bits(request) for request in requests] == alone
    for (tokens, logprobs), prompt in zip(alone, prompts, strict=True):  # preempted after half of its tokens
        half = TOKENS // 2
        again = driver(4, 1e-4)
        recomputed = again.request([*prompt, *tokens[:half]], greedy(TOKENS - half))
        again.generate([recomputed], chunk_tokens=32)
        assert bits(recomputed) == (tokens[half:], logprobs[half:])


def set_split(engine: Engine, x: int, y: int) -> None:
    epoch = engine.snapshot().split_epoch + 1
    plan = cpu_plan(Split(prefill=x, decode=y), sorted(os.sched_getaffinity(0)))
    engine.control(SetPartition(split_epoch=epoch, plan=plan))
    wait_until(lambda: engine.snapshot().split_epoch == epoch, describe=f"split {x}/{y}")


def test_a_stream_is_the_same_under_any_split_after_preemptions_and_deaths(tmp_path: Path) -> None:
    options = EngineOptions(
        model=random_model("llama"),
        run_dir=tmp_path,
        dtype=DType.BFLOAT16,
        max_model_len=512,
        kv_cache_memory=6 << 20,
        prefix_caching=False,
    )
    engine = Engine(options, TORCH_RESIDENT)
    try:
        engine.wait_state(seconds=120)
        client = engine.client()

        def add(length: int) -> Stream:
            return client.add(random_prompt(length, VOCABULARY, length), 3 * TOKENS, logprobs=0)

        alone = {length: add(length).wait(120) for length in LENGTHS}
        preemptions = 0
        for split in ((20, 80), (80, 20)):
            set_split(engine, *split)
            streams = [add(length) for length in (*LENGTHS, *LENGTHS)]
            wait_until(lambda streams=streams: any(stream.tokens for stream in streams), describe="first tokens")
            for phase in Phase:
                engine.kill_worker(phase)
                time.sleep(0.2)
            for stream in streams:
                same = alone[len(stream.prompt)]
                stream.wait(120)
                assert (stream.tokens, stream.logprobs) == (same.tokens, same.logprobs), (split, len(stream.prompt))
                preemptions += stream.preemptions
        assert preemptions > 0, "the pool was large enough for all: nothing was recomputed"
    finally:
        engine.stop()
