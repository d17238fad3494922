"""Greedy float32 tokens equal those of `transformers`, whatever the batch, the chunks and the block edges."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tests.engine.model_driver import (
    BLOCK_SIZE,
    Driver,
    assert_equal_to_reference,
    greedy,
    random_prompt,
    tokenizer,
)

from e2e.lib import models
from e2e.lib.reference import reference
from semipd_engine.ipc.tokens import Sampling

EDGES = [
    1,
    2,
    BLOCK_SIZE - 1,
    BLOCK_SIZE,
    BLOCK_SIZE + 1,
    3 * BLOCK_SIZE - 1,
    3 * BLOCK_SIZE,
    3 * BLOCK_SIZE + 1,
    70,
    150,
]
CAPITAL = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-qwen2", "tiny-qwen3", "smollm2"])
def model(request: pytest.FixtureRequest) -> Path:
    if request.param == "smollm2":
        return models.smollm2()
    return models.random_model(request.param.split("-")[1])


def test_mixed_batches_chunks_and_block_edges(model: Path, device: torch.device) -> None:
    driver = Driver(model, device=device)
    lengths = EDGES if "tiny" in model.name else EDGES[::2]
    requests = [
        driver.request(random_prompt(length, driver.config.vocab_size, seed), greedy(17 + seed % 3))
        for seed, length in enumerate(lengths)
    ]
    random.Random(1).shuffle(requests)
    driver.generate(requests, chunk_tokens=48)
    assert_equal_to_reference(model, requests)


def test_prompts_share_one_prefill_plan(model: Path, device: torch.device) -> None:
    driver = Driver(model, device=device)
    prompts = [random_prompt(length, driver.config.vocab_size, length) for length in (33, 1, 64, 17)]
    requests = [driver.request(prompt, greedy(6)) for prompt in prompts]
    driver.prefill(requests, chunk_tokens=40)
    while any(not r.done for r in requests):
        driver.decode(requests, max_steps=8)
    assert_equal_to_reference(model, requests)


def test_a_prefix_in_shared_blocks_is_not_computed_again(device: torch.device) -> None:
    model = models.random_model("llama")
    driver = Driver(model, device=device)
    prefix = random_prompt(3 * BLOCK_SIZE, driver.config.vocab_size, 5)
    first = driver.request([*prefix, 7, 8, 9], greedy(8))
    driver.generate([first])
    shared = first.block_table[:3]
    second = driver.request([*prefix, 21, 22], greedy(8), shared_blocks=shared)
    assert second.computed == len(prefix)
    driver.generate([second])
    assert_equal_to_reference(model, [first, second])
    for block in shared:  # and it is these blocks that the next one reads
        for layer in range(driver.config.num_layers):
            driver.kv.layer(layer)[1][block] = 0
    third = driver.request([*prefix, 21, 22], greedy(8), shared_blocks=shared)
    driver.generate([third])
    assert third.tokens != second.tokens


def test_smollm2_knows_the_capital_of_france(device: torch.device) -> None:
    model = models.smollm2()
    driver = Driver(model, device=device)
    chat = [{"role": "user", "content": CAPITAL}]
    ids = tokenizer(model).apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    stops = driver.config.eos_token_ids
    request = driver.request(ids, Sampling(temperature=0, max_tokens=40, stop_token_ids=stops, logprobs=0))
    driver.generate([request])
    assert "Paris" in tokenizer(model).decode(request.tokens)
    assert request.tokens[-1] in stops
    assert request.tokens == reference(model).greedy(ids, len(request.tokens))[0]


def test_bfloat16_stays_close_to_float32(device: torch.device) -> None:
    """Log-probabilities of the same continuation; rounding of bfloat16 weights and cache is about 3e-3 each."""
    model = models.smollm2()
    ids = tokenizer(model)("The quick brown fox jumps over the lazy dog. The").input_ids
    scores = []
    for dtype in (torch.float32, torch.bfloat16):
        driver = Driver(model, dtype, device=device)
        requests = [driver.request(ids[:length], greedy(1)) for length in range(4, len(ids))]
        driver.generate(requests, chunk_tokens=5)
        scores.append(torch.tensor([r.logprobs[0] for r in requests]))
    assert (scores[0] - scores[1]).abs().max() < 0.3
    assert (scores[0] - scores[1]).abs().mean() < 0.08


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_random_models_vary_and_need_positions(architecture: str, device: torch.device) -> None:
    model = models.random_model(architecture)
    driver = Driver(model, device=device)
    prompts = [tokenizer(model)(text).input_ids for text in ("Water boils at", "Where is the bridge?", CAPITAL)]
    plain = [driver.request(prompt, greedy(64)) for prompt in prompts]
    driver.generate(plain, max_steps=64)
    rotary = driver.runner.decoder.rotary
    rotary._frequencies = torch.zeros_like(rotary._frequencies)
    blind = [driver.request(prompt, greedy(64)) for prompt in prompts]
    driver.generate(blind, max_steps=64)
    for a, b in zip(plain, blind, strict=True):
        assert len(set(a.tokens)) >= 20
        assert sum(x != y for x, y in zip(a.tokens, b.tokens, strict=True)) > 32
