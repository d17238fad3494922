"""Bias, stop ids, penalties and grammar masks on a GPU: to the bit what the twin makes, under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semipd_engine.ipc.tokens import Sampling, pack_bias
from semipd_engine.kernels import Kernels, ReferenceKernels
from semipd_engine.kernels.gpu import TritonKernels, adjusting
from semipd_engine.sampling.sampler import NOT_FINITE, SamplingRow, sample

pytestmark = pytest.mark.unit
KERNELS, TWINS = TritonKernels(num_sms=1), ReferenceKernels()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a row, and what it edits, are several turns long."""
    monkeypatch.setattr(adjusting, "TOKENS", 32)
    monkeypatch.setattr(adjusting, "EDITS", 8)


class Kept(ReferenceKernels):
    """The twin's draws from logits that one of both has adjusted."""

    def __init__(self, adjusts: Kernels) -> None:
        super().__init__()
        self.seen = torch.empty(0)
        self._adjusts = adjusts

    def adjust(self, logits: Tensor, *more: Tensor) -> Tensor:
        before = logits.clone()
        self.seen = self._adjusts.adjust(logits, *more)
        assert torch.equal(logits, before), "they are read again, for log-probabilities"
        return self.seen


def adjusted(kernels: Kernels, logits: Tensor, rows: Sequence[SamplingRow], masks: Sequence[bytes | None]) -> Tensor:
    kept = Kept(kernels)
    sample(logits, rows, kept, masks)
    return kept.seen


def by_hand(logits: Tensor, row: SamplingRow, history: Sequence[int], prompt: int, mask: bytes | None) -> Tensor:
    """Of one row, a token after the other, in numpy's float32."""
    asked, values = row.sampling, logits.numpy().copy()
    half = len(asked.logit_bias) // 2
    for token, bias in zip(
        np.frombuffer(asked.logit_bias[:half], np.int32),
        np.frombuffer(asked.logit_bias[half:], np.float32),
        strict=True,
    ):
        if token < len(values):
            values[token] += bias
    for token in asked.stop_token_ids:
        if row.output_index < asked.min_tokens and token < len(values):
            values[token] = -np.inf
    for token in set(history):
        penalty = np.float32(asked.repetition_penalty)
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
        if count := history[prompt:].count(token):
            values[token] -= np.float32(asked.presence_penalty) + np.float32(asked.frequency_penalty) * np.float32(
                count
            )
    if mask is not None:
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: len(values)]
        allowed = np.concatenate((bits, np.zeros(len(values) - len(bits), np.uint8)))
        values[allowed == 0] = -np.inf
    return torch.from_numpy(values)


@st.composite
def requests(draw: st.DrawFn, vocab: int) -> tuple[Sampling, int, list[int], int, bytes | None]:
    """Sampling, output index, history, tokens of the prompt, mask."""
    token = st.integers(0, vocab - 1)
    penalties = draw(st.booleans())
    biases = st.dictionaries(st.integers(0, vocab + 3), st.sampled_from([-100.0, 0.1, 3.3]), max_size=9)
    history = draw(st.lists(token, max_size=30)) if penalties else []
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.9])),
        seed=draw(st.integers(0, 2**63)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.7])) if penalties else 1.0,
        presence_penalty=draw(st.sampled_from([0.4, -0.3])) if penalties else 0.0,
        frequency_penalty=draw(st.sampled_from([0.0, 0.7])) if penalties else 0.0,
        logit_bias=pack_bias(draw(biases)),
        stop_token_ids=tuple(draw(st.lists(st.integers(0, vocab + 3), max_size=3))),
        min_tokens=draw(st.sampled_from([0, 2])),
    )
    mask = draw(st.none() | st.binary(min_size=1, max_size=-(-vocab // 8)).map(lambda some: b"\x01" + some[1:]))
    return sampling, draw(st.integers(0, 3)), history, draw(st.integers(0, len(history))), mask


@settings(max_examples=25)
@given(st.data(), st.sampled_from([5, 32, 33, 100]), st.integers(1, 4), st.integers(0, 99))
def test_to_the_bit_what_each_row_asks_for(data: st.DataObject, vocab: int, count: int, seed: int) -> None:
    asked = data.draw(st.lists(requests(vocab), min_size=count, max_size=count))
    logits = (torch.randn(count, vocab + 3, generator=torch.Generator().manual_seed(seed)) * 3)[:, :-3]
    rows = [SamplingRow(sampling, index, history, prompt) for sampling, index, history, prompt, _ in asked]
    masks = [mask for *_, mask in asked]
    mine, twins = (sample(logits, rows, kernels, masks) for kernels in (KERNELS, TWINS))
    assert mine == twins
    if any(row.adjusts for row in rows) or any(mask is not None for mask in masks):
        theirs = [by_hand(logits[i], rows[i], asked[i][2], asked[i][3], masks[i]) for i in range(count)]
        for kernels in (KERNELS, TWINS):
            assert torch.equal(adjusted(kernels, logits, rows, masks), torch.stack(theirs))


def test_a_row_that_asks_for_nothing_beside_one_that_does() -> None:
    logits = torch.randn(3, 70, generator=torch.Generator().manual_seed(1))
    plain, biased = Sampling(temperature=0), Sampling(temperature=0, logit_bias=pack_bias({64: 50.0}))
    rows = [SamplingRow(one, 0) for one in (plain, biased, plain)]
    masks = [None, None, b"\x00" * 8 + b"\x20"]
    found = adjusted(KERNELS, logits, rows, masks)
    assert torch.equal(found[0], logits[0]) and sample(logits, rows, KERNELS, masks)[1:] == [64, 69]


def test_what_is_no_number_stays_so_whatever_is_asked() -> None:
    logits = torch.zeros(2, 40)
    logits[0, 3] = torch.nan
    rows = [
        SamplingRow(Sampling(temperature=0, logit_bias=pack_bias({3: -100.0})), 0),
        SamplingRow(Sampling(temperature=0), 0),
    ]
    assert sample(logits, rows, KERNELS, [b"\xf0", b"\xf0"]) == [NOT_FINITE, 4]


def test_tokens_of_the_steps_of_a_plan_are_counted() -> None:
    """The same as of a history that holds them: before all others, between two, and once more."""
    asked = Sampling(temperature=0, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3, max_tokens=99)
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2))
    row, history = SamplingRow(asked, 0, [7, 30, 7], 2), [7, 30, 7]
    for token in (3, 20, 39, 7, 20, 3):
        row.accept(token)
        history.append(token)
        fresh = SamplingRow(asked, row.output_index, history, 2)
        assert np.array_equal(row.edits(40), fresh.edits(40))
        both = [adjusted(KERNELS, logits, [one], [None]) for one in (row, fresh)]
        assert torch.equal(both[0], by_hand(logits[0], row, history, 2, None)[None]) and torch.equal(*both)
