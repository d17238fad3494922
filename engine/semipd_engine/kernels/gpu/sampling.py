"""One token for each row of logits, on the device, without a sort and without waiting for it. Triton.

A program takes one row, so a row's token depends on nothing else. Probabilities that are not negative are ordered as
their bits are, so the cut that top-k and top-p ask for is found by halving the range of bits: each turn counts, and
sums, what is at least as likely as the middle. It ends as soon as no token lies between the two ends, after some ten to
fifteen turns, and is exact for equals, too. Nothing is left out beforehand, so there is no fall-back for long tails.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192
"""Tokens of one turn over a row."""


@triton.jit
def _likelihood(row, places, vocab, temperature, top):
    """exp((logit - the highest) / temperature): 1 for the likeliest token, 0 for what a mask forbids."""
    logits = tl.load(row + places, mask=places < vocab, other=float("-inf"))
    return tl.exp((logits - top) / temperature)


@triton.jit
def _measure(row, vocab, temperature, top, least, BLOCK: tl.constexpr):
    """Of tokens whose likelihood's bits are at least `least`: how many, their mass, and the least likelihood."""
    count = tl.zeros([], tl.int32)
    mass = tl.zeros([], tl.float64)
    smallest = tl.full([], 2.0, tl.float32)
    for begin in range(0, vocab, BLOCK):
        likelihood = _likelihood(row, begin + tl.arange(0, BLOCK), vocab, temperature, top)
        taken = likelihood.to(tl.int32, bitcast=True) >= least
        count += tl.sum(taken.to(tl.int32), axis=0)
        mass += tl.sum(tl.where(taken, likelihood, 0.0).to(tl.float64), axis=0)
        smallest = tl.minimum(smallest, tl.min(tl.where(taken, likelihood, 2.0), axis=0))
    return count, mass, smallest


@triton.jit
def _cut(row, vocab, temperature, top, least, top_k, top_p, BLOCK: tl.constexpr):
    """The bits of the least likelihood that top-k, then top-p, keep of those from `least` on, and how many of equals
    are kept: the first ones."""
    beyond = 0x3F800001  # the bits of 1, and one more: nothing is likelier than the likeliest
    count, mass, smallest = _measure(row, vocab, temperature, top, least, BLOCK)
    low, equals = least, vocab
    if (top_k > 0) & (top_k < count):
        high = beyond + 0 * least
        while (high - low > 1) & (count != top_k):
            middle = low + (high - low) // 2
            some, some_mass, some_smallest = _measure(row, vocab, temperature, top, middle, BLOCK)
            if some >= top_k:
                low, count, mass, smallest = middle, some, some_mass, some_smallest
            else:
                high = middle
        if count > top_k:  # equals at the cut
            above, above_mass, _ = _measure(row, vocab, temperature, top, low + 1, BLOCK)
            equals = top_k - above
            mass = above_mass + equals * smallest.to(tl.float64)
    if top_p < 1.0:
        wanted = mass * top_p
        least = low
        high = beyond + 0 * least
        # Without the least of them the rest would not reach what is wanted: the cut is found.
        while (high - low > 1) & (mass - smallest.to(tl.float64) >= wanted):
            middle = low + (high - low) // 2
            some, some_mass, some_smallest = _measure(row, vocab, temperature, top, middle, BLOCK)
            if (some > 0) & (some_mass >= wanted):
                low, mass, smallest = middle, some_mass, some_smallest
            else:
                high = middle
        if mass - smallest.to(tl.float64) >= wanted:
            _, above_mass, _ = _measure(row, vocab, temperature, top, low + 1, BLOCK)
            kept = tl.ceil((wanted - above_mass) / smallest.to(tl.float64)).to(tl.int32)
            equals = tl.minimum(tl.where(low == least, equals, vocab), tl.maximum(kept, 1))
        elif low > least:
            equals = vocab
    return low, equals


@triton.jit
def _kept(row, places, vocab, temperature, top, low, equals, before):
    """Likelihoods of the kept tokens, 0 for the others; `before`: of the equals at the cut in earlier blocks."""
    likelihood = _likelihood(row, places, vocab, temperature, top)
    bits = likelihood.to(tl.int32, bitcast=True)
    equal = (bits == low).to(tl.int32)
    kept = (bits > low) | ((equal > 0) & (before + tl.cumsum(equal, axis=0) <= equals))
    return tl.where(kept, likelihood, 0.0).to(tl.float64), before + tl.sum(equal, axis=0)


@triton.jit
def _sample(logits, temperatures, top_ks, top_ps, min_ps, uniforms, out, stride, vocab, BLOCK: tl.constexpr):
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * stride
    top = tl.full([], float("-inf"), tl.float32)
    token = tl.zeros([], tl.int32)
    for begin in range(0, vocab, BLOCK):
        places = begin + tl.arange(0, BLOCK)
        values = tl.load(row + places, mask=places < vocab, other=float("-inf"))
        highest = tl.max(values, axis=0)
        if highest > top:
            top = highest
            token = tl.min(tl.where(values == highest, places, vocab), axis=0)
    temperature = tl.load(temperatures + index)
    if (temperature > 0.0) & (top > float("-inf")):
        # What is masked, or less likely than float32 tells from nothing, has the bits 0 and is never taken.
        least = tl.maximum(tl.load(min_ps + index).to(tl.int32, bitcast=True), 1)
        top_k, top_p = tl.load(top_ks + index), tl.load(top_ps + index).to(tl.float64)
        low, equals = least, vocab
        if (top_k > 0) | (top_p < 1.0):
            low, equals = _cut(row, vocab, temperature, top, least, top_k, top_p, BLOCK)
        total = tl.zeros([], tl.float64)
        before = tl.zeros([], tl.int32)
        for begin in range(0, vocab, BLOCK):
            places = begin + tl.arange(0, BLOCK)
            kept, before = _kept(row, places, vocab, temperature, top, low, equals, before)
            total += tl.sum(kept, axis=0)
        point = total * tl.load(uniforms + index)
        found, last = vocab + 0 * before, 0 * before - 1
        total, before = total * 0.0, before * 0
        for begin in range(0, vocab, BLOCK):
            places = begin + tl.arange(0, BLOCK)
            kept, before = _kept(row, places, vocab, temperature, top, low, equals, before)
            mass = tl.sum(kept, axis=0)
            if (found == vocab) & (total + mass > point):
                passed = (total + tl.cumsum(kept, axis=0) > point) & (kept > 0.0)
                found = tl.min(tl.where(passed, places, vocab), axis=0)
            last = tl.maximum(last, tl.max(tl.where(kept > 0.0, places, -1), axis=0))
            total += mass
        # Rounding may carry the point to the very end of the sum: then the last kept token is meant.
        token = tl.where(found < vocab, found, tl.where(last >= 0, last, token))
    tl.store(out + index, token.to(tl.int64))


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """See `signatures.Kernels.sample`."""
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        _sample[(rows,)](
            *(logits, temperature, top_k, top_p, min_p, uniform, out, logits.stride(0), vocab),
            BLOCK=BLOCK,
            num_warps=16,
        )
    return out
