"""The sampler: filters against hand-computed sets, statistics, and the same token whatever the batch."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from semipd_engine.ipc.tokens import Sampling, pack_bias
from semipd_engine.kernels import SEEN, STOPPED, ReferenceKernels
from semipd_engine.sampling.sampler import SamplingRow, sample, token_logprobs, uniform

pytestmark = pytest.mark.unit

KERNELS = ReferenceKernels()
LOGITS = torch.log(torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]))


def kept(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[int]:
    """The tokens that can be drawn, by drawing all over the unit interval."""
    return sorted(set(draw_at(LOGITS, torch.arange(0, 1, 1e-3), top_k, top_p, min_p).tolist()))


def draw_at(
    logits: torch.Tensor, uniforms: torch.Tensor, top_k: int, top_p: float, min_p: float = 0.0, temperature: float = 1.0
) -> torch.Tensor:
    n = len(uniforms)
    return KERNELS.sample(
        logits.expand(n, -1),
        torch.full((n,), temperature),
        torch.full((n,), top_k, dtype=torch.int32),
        torch.full((n,), top_p),
        torch.full((n,), min_p),
        uniforms.double(),
    )


def draw(
    logits: torch.Tensor, sampling: Sampling, index: int = 0, history: list[int] | None = None, prompt: int = 0
) -> int:
    return sample(logits[None], [SamplingRow(sampling, index, history or [], prompt)], KERNELS)[0]


def test_filters_keep_the_right_tokens() -> None:
    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.35) == [0]
    assert kept(top_p=0.69) == [0, 1]
    assert kept(top_p=0.71) == [0, 1, 2]
    assert kept(top_p=1e-9) == [0]
    assert kept(min_p=0.3) == [0, 1, 2]
    assert kept(top_k=2, top_p=0.5) == [0]  # 0.4 / 0.7 reaches a half
    assert kept(top_p=0.5, min_p=0.3) == [0, 1]


def test_ties_at_top_k_keep_exactly_k() -> None:
    assert len(set(draw_at(torch.zeros(10), torch.arange(0, 1, 0.01), 3, 1.0).tolist())) == 3


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.8)])
def test_frequencies_follow_the_distribution(sampling: Sampling) -> None:
    expected = torch.softmax(LOGITS / sampling.temperature, dim=-1)
    allowed = kept(sampling.top_k, sampling.top_p, sampling.min_p)
    expected[[token for token in range(5) if token not in allowed]] = 0
    expected /= expected.sum()
    draws = 4000
    rows = [SamplingRow(Sampling(**_fields(sampling, seed=seed)), 3) for seed in range(draws)]
    counts = torch.bincount(torch.tensor(sample(LOGITS.expand(draws, -1), rows, KERNELS)), minlength=5)
    assert int(counts[expected == 0].sum()) == 0
    chi_square = float((((counts - draws * expected) ** 2) / (draws * expected))[expected > 0].sum())
    assert chi_square < 23.5  # 1 in 10,000 for four degrees of freedom


def _fields(sampling: Sampling, **changes: object) -> dict[str, object]:
    return {name: getattr(sampling, name) for name in sampling.__struct_fields__} | changes


def unevenness(counts: np.ndarray) -> float:
    """How far counts are from equal ones, in standard deviations: within 5 but once in a million."""
    cells, expected = counts.size, counts.sum() / counts.size
    return float((((counts - expected) ** 2 / expected).sum() - (cells - 1)) / math.sqrt(2 * (cells - 1)))


NEIGHBOURS: dict[str, Callable[[int], tuple[int, int]]] = {
    "positions": lambda i: (7, i),
    "seeds": lambda i: (i, 7),
    "choices of one request": lambda i: (2**63 - 1 - i % 128, i // 128),
    "seeds of one bit": lambda i: (1 << i % 63, i // 63),
}
"""Draws that lie next to each other in what is hashed, as a batch's rows and an answer's tokens do."""


@pytest.mark.parametrize("which", NEIGHBOURS)
def test_draws_are_uniform_and_independent(which: str) -> None:
    """Of 64-bit seeds and positions alike: each number, each pair of neighbours, and the lowest bits as the highest."""
    numbers = np.array([uniform(*NEIGHBOURS[which](i)) for i in range(40_000)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert len(set(numbers.tolist())) == len(numbers), "2^53 numbers: two equal ones among 40,000 are 1 in 10^7"
    assert abs(unevenness(np.bincount((numbers * 256).astype(int), minlength=256))) < 5
    lowest = (numbers * 2.0**53).astype(np.int64) % 256
    assert abs(unevenness(np.bincount(lowest, minlength=256))) < 5
    for apart in (1, 2, 63, 128):
        pairs = (numbers[:-apart] * 16).astype(int) * 16 + (numbers[apart:] * 16).astype(int)
        assert abs(unevenness(np.bincount(pairs, minlength=256))) < 5, apart
        assert abs(np.corrcoef(numbers[:-apart], numbers[apart:])[0, 1]) < 5 / math.sqrt(len(numbers)), apart


def test_a_seed_and_a_position_are_two_numbers() -> None:
    """None is another's digits: 1 and 23 are not 12 and 3. And one that changes by a bit changes half of the draw's."""
    cells = [(seed, index) for seed in range(400) for index in range(400)]
    assert len({uniform(*cell) for cell in cells}) == len(cells)
    flips = [
        int(uniform(seed, 5) * 2.0**53) ^ int(uniform(seed ^ (1 << bit), 5) * 2.0**53)
        for seed in range(50)
        for bit in range(64)
    ]
    share = np.mean([flip.bit_count() for flip in flips]) / 53
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(53 * len(flips))


def test_a_draw_is_these_bits() -> None:
    """By the definition in docs/design/0005: another process, release or machine continues an answer with them."""
    assert [uniform(*cell) for cell in ((0, 0), (7, 3), (2**63 - 1, 2**31))] == [
        0.3859926107094097,
        0.5648628684101831,
        0.4638246977353897,
    ]


def test_the_same_seed_and_index_give_the_same_token_in_any_batch() -> None:
    logits = torch.randn(16, 500, generator=torch.Generator().manual_seed(1))
    samplings = [Sampling(seed=i % 5, temperature=0.3 + 0.1 * i, top_p=0.95, top_k=(0, 40)[i % 2]) for i in range(16)]
    alone = [draw(logits[i], samplings[i], index=i) for i in range(16)]
    order = list(range(16))
    random.Random(3).shuffle(order)
    together = sample(logits[order], [SamplingRow(samplings[i], i) for i in order], KERNELS)
    assert together == [alone[i] for i in order]
    assert len({draw(logits[0], Sampling(seed=5, temperature=2.0), index=i) for i in range(40)}) > 20


def test_a_draw_does_not_hang_on_the_last_bits_of_the_logits() -> None:
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(2))
    noisy = logits + 1e-6 * torch.randn(2000, generator=torch.Generator().manual_seed(3))
    differing = sum(draw(logits, Sampling(seed=s)) != draw(noisy, Sampling(seed=s)) for s in range(300))
    assert differing <= 1


def test_greedy_bias_and_masked_tokens() -> None:
    assert draw(LOGITS, Sampling(temperature=0)) == 0
    assert draw(LOGITS, Sampling(temperature=0, logit_bias=pack_bias({3: 5.0}))) == 3
    assert draw(LOGITS, Sampling(temperature=0, logit_bias=pack_bias({0: -100.0, 99: 100.0}))) == 1
    stop = Sampling(temperature=0, stop_token_ids=(0, 1), min_tokens=3)
    assert [draw(LOGITS, stop, index) for index in range(5)] == [2, 2, 2, 0, 0]
    allowed = b"\x0c"  # of the tokens 2 and 3
    rows = [SamplingRow(Sampling(temperature=0), 0), SamplingRow(Sampling(temperature=0), 0)]
    assert sample(LOGITS.expand(2, -1), rows, KERNELS, [None, allowed]) == [0, 2]


def test_penalties_count_what_they_should() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, -1.1])
    presence = Sampling(temperature=0, presence_penalty=0.2)
    assert draw(logits, presence, history=[0, 0], prompt=2) == 0  # prompt tokens do not count
    assert draw(logits, presence, history=[0, 0], prompt=1) == 1
    frequency = Sampling(temperature=0, frequency_penalty=0.06)
    assert draw(logits, frequency, history=[0], prompt=0) == 0
    assert draw(logits, frequency, history=[0, 0], prompt=0) == 1
    repetition = Sampling(temperature=0, repetition_penalty=1.2)
    assert draw(logits, repetition, history=[0], prompt=1) == 1  # the prompt counts here
    assert draw(logits[2:], repetition, history=[0], prompt=1) == 1  # negative logits are multiplied


def test_a_step_with_much_bias_takes_no_more_turns_than_one_with_little() -> None:
    """Counted in the interpreter's instructions: what is said of a thousand tokens costs everybody's every step."""

    def instructions(tokens: int) -> int:
        ids = range(0, 2 * tokens, 2)
        asked = Sampling(
            logit_bias=pack_bias({token: token / 99 for token in ids}),
            stop_token_ids=tuple(range(1, 2 * tokens, 2)),
            min_tokens=9,
            presence_penalty=1.0,
        )
        row, count = SamplingRow(asked, 0, [*ids], 1), 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal count
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            count += event == "opcode"
            return trace if frame.f_globals["__name__"].startswith("semipd_engine") else None

        row.edits(5000)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            found = row.edits(5000)
        finally:
            sys.settrace(before)
        assert len(found) == 2 * tokens and found[2:4].tolist() == [
            [2, int(np.float32(2 / 99).view(np.int32)), int(np.float32(1).view(np.int32)), SEEN],
            [3, 0, 0, STOPPED],
        ]
        return count

    assert 0 < instructions(1024) == instructions(8)


def test_accepted_tokens_enter_the_penalties() -> None:
    row = SamplingRow(Sampling(temperature=0, presence_penalty=3.0, max_tokens=9), 0, [4], 1)
    seen = []
    for _ in range(5):
        seen += sample(LOGITS[None], [row], KERNELS)
        row.accept(seen[-1])
    assert seen[:3] == [0, 1, 2]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert row.output_index == 5


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = LOGITS[None] + 4.0
    (token,) = sample(logits, [SamplingRow(Sampling(temperature=0.1, logit_bias=pack_bias({4: 50.0})), 0)], KERNELS)
    first, second = token_logprobs(logits.expand(2, -1), (token, 1), (2, 0))
    assert (token, first.rank, second.rank) == (4, 5, 2)
    assert first.logprob == pytest.approx(math.log(0.05), abs=1e-5)
    assert [token for token, _ in first.top] == [0, 1]
    assert first.top[1][1] == pytest.approx(math.log(0.3), abs=1e-5)
    assert (second.logprob, second.top) == (pytest.approx(math.log(0.3), abs=1e-5), [])


def test_more_logprobs_than_there_are_tokens_are_all() -> None:
    (found,) = token_logprobs(LOGITS[None], [3], [20])
    assert [token for token, _ in found.top] == [0, 1, 2, 3, 4]
