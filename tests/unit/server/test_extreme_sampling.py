"""Sampling fields at the ends of their ranges, down to what float32 holds for nothing: the tokens are still those that
the request asks for, as float64 has it, and never one that a grammar forbids."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semipd_engine.cards.model_card import ModelCard, SamplingDefaults
from semipd_engine.kernels import ReferenceKernels
from semipd_engine.sampling.sampler import SamplingRow, sample
from semipd_engine.server.params import GREEDY_BELOW, LEAST_REPETITION_PENALTY, resolve
from semipd_engine.server.protocol import CompletionRequest

pytestmark = pytest.mark.unit

VOCAB, DRAWS = 64, 8
CARD = ModelCard("m", VOCAB, 4096, (), SamplingDefaults())
KERNELS = ReferenceKernels()
SLACK = 1.5
"""So many times less likely than a bound a token may be: float32 rounds, and that over a small temperature."""
TINY = [5e-324, 1e-300, 1e-46, 1e-40, 1e-9]

Reals = npt.NDArray[np.float64]


def logits_of(seed: int) -> Reals:
    """In steps that float32 holds, so that equals are equal in both."""
    return np.random.default_rng(seed).integers(-40, 40, VOCAB) / 4


def drawn(fields: dict[str, Any], logits: Reals, history: list[int], mask: bytes | None) -> list[int]:
    found = []
    for seed in range(DRAWS):
        sampling = resolve(CompletionRequest.model_validate({"prompt": "x", "seed": seed} | fields), 4, CARD, 4096)
        row = SamplingRow(sampling, len(history) - 2, history, 2)
        found += sample(torch.from_numpy(logits).float()[None], [row], KERNELS, [mask])
    return found


def adjusted(fields: dict[str, Any], logits: Reals, history: list[int], mask: bytes | None) -> Reals:
    values = logits.copy()
    for token, bias in fields.get("logit_bias", {}).items():
        values[int(token)] += bias
    penalty = max(LEAST_REPETITION_PENALTY, fields.get("repetition_penalty", 1.0))
    for token in set(history):
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
        if made := history[2:].count(token):
            values[token] -= fields.get("presence_penalty", 0.0) + fields.get("frequency_penalty", 0.0) * made
    if mask is not None:
        values[np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little") == 0] = -np.inf
    return values


def wanted(fields: dict[str, Any], values: Reals, token: int) -> bool:
    """May the request have this token, of these adjusted logits?"""
    temperature = fields.get("temperature", 1.0)
    if temperature < GREEDY_BELOW:
        return bool(values[token] >= values.max() - 1e-5 * max(1, abs(values.max())))
    likelihood = np.exp((values - values.max()) / temperature)
    likelier = likelihood[likelihood > SLACK * likelihood[token]]
    return bool(
        likelihood[token] * SLACK >= fields.get("min_p", 0.0)
        and likelihood[token] > 1e-50
        and len(likelier) < (fields.get("top_k", 0) or VOCAB)
        and (not len(likelier) or likelier.sum() < fields.get("top_p", 1.0) * likelihood.sum() * SLACK)
    )


@pytest.mark.parametrize("top_p", TINY)
def test_the_least_top_p_is_the_likeliest_token(top_p: float) -> None:
    logits = np.arange(VOCAB) / 8
    assert drawn({"top_p": top_p}, logits, [], None) == [VOCAB - 1] * DRAWS
    assert drawn({"top_p": top_p}, logits, [], b"\x06" + bytes(7)) == [2] * DRAWS


@pytest.mark.parametrize("penalty", TINY)
def test_the_least_repetition_penalty_brings_back_what_was_there(penalty: float) -> None:
    logits = np.arange(VOCAB) / 8
    assert drawn({"repetition_penalty": penalty}, logits, [7, 3], None) == [7] * DRAWS
    assert drawn({"repetition_penalty": penalty}, logits, [7, 3], b"\x0e" + bytes(7)) == [3] * DRAWS
    assert drawn({"repetition_penalty": penalty, "temperature": 1e-5}, logits, [7, 3], None) == [7] * DRAWS


FIELDS: dict[str, list[float]] = {
    "temperature": [5e-324, 1e-40, 0.99e-5, 1e-5, 2e-5, 0.01, 1.0, 100.0],
    "top_p": [*TINY, 0.5, 1 - 2**-53, 1.0],
    "top_k": [-1, 1, 2, 2**31 - 1],
    "min_p": [*TINY, 0.3, 1 - 2**-53, 1.0],
    "repetition_penalty": [*TINY, 0.5, 1 + 2**-52, 1.1, 100.0],
    "presence_penalty": [*TINY, -1e-300, -2.0, 2.0],
    "frequency_penalty": [*TINY, -1e-300, -2.0, 2.0],
}


@settings(max_examples=150)
@given(
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in FIELDS.items()}),
    st.dictionaries(st.integers(0, VOCAB - 1).map(str), st.sampled_from([5e-324, -100.0, 100.0, 0.25]), max_size=3),
    st.integers(0, 9),
    st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=9),
    st.none() | st.binary(min_size=8, max_size=8).filter(any),
)
def test_any_of_them_together(
    fields: dict[str, Any], bias: dict[str, float], seed: int, history: list[int], mask: bytes | None
) -> None:
    asked = fields | ({"logit_bias": bias} if bias else {})
    if asked.get("top_k") == -1:  # as 0 for the request, and easier to reckon with here
        asked["top_k"] = 0
    logits = logits_of(seed)
    values = adjusted(asked, logits, history, mask)
    for token in drawn(asked, logits, history, mask):
        assert values[token] > -np.inf, "forbidden"
        assert wanted(asked, values, token)
