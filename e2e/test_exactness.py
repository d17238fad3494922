"""Through a pod's Service the tokens are those of `transformers` in float32, and their log-probabilities agree.

60 prompts for each model: around block and chunk edges, alone and four at a time, then two waves of 16.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from e2e.completions import Ask, complete_all
from e2e.fixtures import Serve
from e2e.live import Cluster
from e2e.reference import follow, greedy, vocabulary_size
from e2e.service import manual, spec

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


@pytest.mark.parametrize("name", MODELS)
def test_tokens_equal_transformers(name: str, cluster: Cluster, serve: Serve, model_paths: dict[str, Path]) -> None:
    model = model_paths[name]
    todo = prompts(model)
    assert len(todo) >= 60
    service = serve(name, spec(model.name, partition=manual(50, 50))).wait_ready()
    asks = [Ask(prompt, TOKENS, stream=number % 2 == 1, logprobs=True) for number, prompt in enumerate(todo)]
    url = service.url()
    with cluster.network():
        answers = complete_all(url, asks[:6])
        answers += complete_all(url, asks[6 : len(EDGES)], at_once=4)
        answers += complete_all(url, asks[len(EDGES) : len(EDGES) + 16], at_once=16)
        answers += complete_all(url, asks[len(EDGES) + 16 :], at_once=16)
    wrong, furthest, varied = [], 0.0, set()
    for number, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        assert len(answer.token_ids) == TOKENS
        stepwise = number % 12 == 0
        expected = greedy(model, ask.prompt, TOKENS) if stepwise else follow(model, ask.prompt, answer.token_ids)
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
