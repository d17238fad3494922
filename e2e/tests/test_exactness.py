"""Through a pod's Service the tokens are those of `transformers` in float32, and their log-probabilities agree.

60 prompts for each model: around block and chunk edges, alone and eight at a time, then two waves of 16.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from e2e.lib.cluster import Cluster
from e2e.lib.completions import Answer, Ask, complete_all
from e2e.lib.fixtures import Serve
from e2e.lib.reference import Continuation, follow, greedy, vocabulary_size
from e2e.lib.service import manual, spec

pytestmark = pytest.mark.node

BLOCK, CHUNK, TOKENS = 16, 256, 64
EDGES = [
    1,
    2,
    *(k * BLOCK + d for k in (1, 2, 3, 4, 8, CHUNK // BLOCK, 17) for d in (-1, 0, 1)),
    300,
    511,
    512,
    513,
    600,
]
MODELS = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "smollm2"]
LOGPROB_TOLERANCE = 1e-4


def prompts(model: Path) -> list[tuple[int, ...]]:
    """The same for the same model. Half of the last wave repeats the beginning of the first: cached blocks are used."""
    size = vocabulary_size(model)
    source = random.Random(7)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(source.choices(range(min(1_000, size // 4), size - size // 8), k=length))

    alone = [ids(length) for length in EDGES]
    first = [ids(length) for length in (1, 7, 15, 16, 17, 33, 48, 64, 80, 100, 129, 200, 255, 257, 320, 400)]
    second = [prompt[: len(prompt) * 3 // 4] + ids(20) for prompt in first[8:]]
    second += [ids(length) for length in (1, 16, 31, 47, 65, 144, 256, 290)]
    return [*alone, *first, *second]


@pytest.fixture(scope="module")
def references() -> Iterator[ProcessPoolExecutor]:
    """Two processes in which `transformers` works on answers while the pod gives the next ones."""
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=os.nice, initargs=(10,)) as pool:
        yield pool


@pytest.mark.parametrize("name", MODELS)
def test_tokens_equal_transformers(
    name: str, cluster: Cluster, serve: Serve, model_paths: dict[str, Path], references: ProcessPoolExecutor
) -> None:
    model = model_paths[name]
    todo = prompts(model)
    assert len(todo) >= 60
    service = serve(name, spec(model.name, partition=manual(50, 50))).wait_ready()
    asks = [Ask(prompt, TOKENS, stream=number % 2 == 1, logprobs=True) for number, prompt in enumerate(todo)]
    waves = ((0, 3, 1), (3, len(EDGES), 8), (len(EDGES), len(EDGES) + 16, 16), (len(EDGES) + 16, len(asks), 16))
    url = service.url()
    answers: list[Answer] = []
    awaited: list[Future[Continuation]] = []
    for begin, end, at_once in waves:
        with cluster.network():
            answers += complete_all(url, asks[begin:end], at_once=at_once)
        for number in range(begin, end):
            prompt, answer = asks[number].prompt, answers[number]
            assert len(answer.token_ids) == TOKENS
            stepwise = number % 12 == 0
            awaited.append(
                references.submit(greedy, model, prompt, TOKENS)
                if stepwise
                else references.submit(follow, model, prompt, answer.token_ids)
            )
    wrong, furthest, varied = [], 0.0, set()
    for ask, answer, reference in zip(asks, answers, awaited, strict=True):
        expected = reference.result()
        varied |= set(expected.token_ids)
        if answer.token_ids != expected.token_ids:
            pairs = zip(answer.token_ids, expected.token_ids, strict=True)
            at = next(place for place, (got, want) in enumerate(pairs) if got != want)
            wrong.append(f"prompt of {len(ask.prompt)} tokens, stream={ask.stream}: differs from token {at} on")
            continue
        gaps = [abs(got - want) for got, want in zip(answer.logprobs, expected.logprobs, strict=True)]
        furthest = max(furthest, *gaps)
        assert answer.finish_reason == "length"
        assert answer.usage["prompt_tokens"] == len(ask.prompt)
        assert answer.usage["completion_tokens"] == TOKENS
    assert not wrong, "\n".join(wrong)
    assert furthest <= LOGPROB_TOLERANCE
    assert len(varied) >= 20  # a model that says one token again and again would prove nothing
    print(f"{name}: {len(asks)} prompts, {TOKENS} tokens each, equal; log-probabilities within {furthest:.1e}")
