"""The GPU's sampler draws what its twin draws, under Triton's interpreter: the same token for the same seed.

Cuts lie beside, never at, what equal tokens sum up to: there the twin's float32 sums and ours round to either side.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semipd_engine.kernels import Kernels, ReferenceKernels
from semipd_engine.kernels.gpu import TritonKernels, sampling
from semipd_engine.sampling.sampler import uniform

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:invalid value encountered in subtract"),  # a row without a token
]
KERNELS, TWINS = TritonKernels(num_sms=1), ReferenceKernels()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a row is several turns long."""
    monkeypatch.setattr(sampling, "BLOCK", 128)


@st.composite
def rows(draw: st.DrawFn) -> tuple[float, int, float, float, int]:
    """Temperature, top-k, top-p, min-p, seed."""
    return (
        draw(st.sampled_from([0.0, 0.3, 1.0, 1.7])),
        draw(st.sampled_from([0, 1, 3, 50, 1000])),
        draw(st.sampled_from([1.0, 0.9017, 0.4931, 0.1013])),
        draw(st.sampled_from([0.0, 0.0503, 0.4973])),
        draw(st.integers(0, 2**63)),
    )


def columns(settings_of: list[tuple[float, int, float, float, int]]) -> tuple[Tensor, ...]:
    temperature, top_k, top_p, min_p, seeds = zip(*settings_of, strict=True)
    return (
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(top_p, dtype=torch.float32),
        torch.tensor(min_p, dtype=torch.float32),
        torch.tensor([uniform(seed, 3) for seed in seeds], dtype=torch.float64),
    )


def logits_of(count: int, vocab: int, equals: bool, masked: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, vocab, generator=generator) * 3
    if equals:
        logits = logits.round()
    forbidden = torch.rand(count, vocab, generator=generator) < masked
    forbidden.scatter_(1, torch.randint(vocab, (count, 1), generator=generator), False)
    return logits.masked_fill(forbidden, float("-inf"))


@settings(max_examples=20)
@given(
    st.lists(rows(), min_size=1, max_size=3),
    st.sampled_from([1, 2, 127, 128, 129, 250]),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.integers(0, 1000),
)
def test_the_same_tokens_as_the_twin(
    asked: list[tuple[float, int, float, float, int]], vocab: int, equals: bool, masked: float, seed: int
) -> None:
    logits, more = logits_of(len(asked), vocab, equals, masked, seed), columns(asked)
    before = logits.clone()
    tokens = KERNELS.sample(logits, *more)
    assert tokens.dtype == torch.int64 and tokens.tolist() == TWINS.sample(logits, *more).tolist()
    assert torch.equal(logits, before), "they are read again, for log-probabilities"
    assert bool((logits.gather(1, tokens[:, None]) > float("-inf")).all()), "nothing forbidden"


def test_a_row_depends_on_its_own_entries_only() -> None:
    logits = logits_of(3, 129, True, 0.5, 7)
    more = columns([(1.0, 3, 0.9017, 0.0503, 1), (0.0, 0, 1.0, 0.0, 2), (1.7, 0, 0.4931, 0.0, 3)])
    together = KERNELS.sample(logits, *more).tolist()
    for row in range(3):
        where = slice(row, row + 1)
        assert KERNELS.sample(logits[where], *(one[where] for one in more)).tolist() == together[where]
    turned = KERNELS.sample(logits.flip(0), *(one.flip(0) for one in more)).tolist()
    assert turned[::-1] == together


def drawn(kernels: Kernels, logits: Tensor, top_k: int, top_p: float, min_p: float, points: int) -> list[int]:
    ones = torch.ones(points)
    return kernels.sample(
        logits.expand(points, -1),
        *(ones, torch.full((points,), top_k, dtype=torch.int32), ones * top_p, ones * min_p),
        torch.arange(points, dtype=torch.float64) / points,
    ).tolist()


def test_each_token_as_often_as_it_is_likely_and_the_first_of_equals_are_kept() -> None:
    flat = torch.zeros(1, 64)  # sums of powers of two are exact
    assert drawn(KERNELS, flat, 0, 1, 0, 16) == list(range(0, 64, 4))
    assert drawn(KERNELS, flat, 0, 0.5, 0, 8) == list(range(0, 32, 4))
    assert drawn(KERNELS, flat, 16, 1, 0, 8) == list(range(0, 16, 2))
    assert drawn(KERNELS, flat, 16, 0.5, 0, 4) == list(range(0, 8, 2))
    flat[0, [7, 50]] = 20.0
    assert drawn(KERNELS, flat, 0, 0.9, 0, 4) == [7, 7, 50, 50]
    assert drawn(KERNELS, flat, 50, 1, 0.5, 4) == [7, 7, 50, 50]
    assert drawn(KERNELS, flat, 1, 1, 0, 2) == [7, 7]
    assert drawn(KERNELS, flat, 0, 0.0, 0, 2) == [7, 7], "at least one"


def test_the_end_of_the_sum_is_the_last_kept_token() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5, float("-inf")]])
    last = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    one, none = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    assert KERNELS.sample(logits, one, none, one, none.float(), last).tolist() == [2]


def test_no_rows_and_rows_without_a_token() -> None:
    empty = columns([(1.0, 0, 1.0, 0.0, 1)])
    assert KERNELS.sample(torch.empty(0, 70), *(one[:0] for one in empty)).tolist() == []
    nothing = torch.full((1, 70), float("-inf"))
    assert KERNELS.sample(nothing, *empty).tolist() == [0], "a token of the vocabulary, whatever happens"


def test_rows_of_a_wider_matrix() -> None:
    wide = logits_of(3, 200, False, 0.0, 5)
    more = columns([(1.0, 3, 0.9017, 0.0, seed) for seed in range(3)])
    assert KERNELS.sample(wide[:, :70], *more).tolist() == TWINS.sample(wide[:, :70].contiguous(), *more).tolist()
