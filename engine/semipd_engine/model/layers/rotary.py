"""Rotary position embedding: inverse frequencies for each scaling kind, cosines and sines for given positions.

Formulas: RoPE (arXiv 2104.09864), linear interpolation (2306.15595), YaRN (2309.00071), and Llama 3.1's piecewise
scaling. Same arithmetic in the same precision as transformers, so that tokens can be compared exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semipd_engine.cards.rope import RopeConfig
from semipd_engine.model.stage import Step


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Radians per position for each pair of dimensions, float32 [head_dim / 2], and the factor on cosine and sine."""
    frequencies = 1.0 / (rope.theta ** _exponents(head_dim))
    match rope.kind:
        case "linear":
            return frequencies / rope.factor, 1.0
        case "llama3":
            return _llama3(rope, frequencies), 1.0
        case "yarn":
            return _yarn(rope, frequencies, head_dim), _yarn_attention_factor(rope)
    return frequencies, 1.0


def _exponents(head_dim: int) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim


class RotaryEmbedding:
    """Cosines and sines, computed once for the positions of a step and shared by all its layers."""

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device) -> None:
        frequencies, self._scale = inverse_frequencies(rope, head_dim)
        self._frequencies = frequencies.to(device)
        self._head_dim = head_dim

    def prepare(self, step: Step) -> None:
        cos, sin = cosines_and_sines(step, self._head_dim)
        angles = torch.outer(step.batch.positions.to(torch.float32), self._frequencies)
        torch.cos(angles, out=cos)
        torch.sin(angles, out=sin)
        if self._scale != 1.0:
            cos *= self._scale
            sin *= self._scale


def cosines_and_sines(step: Step, head_dim: int) -> tuple[Tensor, Tensor]:
    """The step's, float32 [T, head_dim / 2] each."""
    return step.rows("cos", head_dim // 2, torch.float32), step.rows("sin", head_dim // 2, torch.float32)


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Long waves are divided by `factor`, short ones kept, those between interpolated."""
    original = rope.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    long, short = original / rope.low_freq_factor, original / rope.high_freq_factor
    scaled = torch.where(wavelengths > long, frequencies / rope.factor, frequencies)
    smooth = (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = (1 - smooth) * scaled / rope.factor + smooth * scaled
    return torch.where((wavelengths < short) | (wavelengths > long), scaled, between)


def _yarn(rope: RopeConfig, frequencies: Tensor, head_dim: int) -> Tensor:
    """A linear ramp over the dimensions, from extrapolation (fast rotations) to interpolation (slow ones)."""

    def dimension(rotations: float) -> float:
        length = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    extrapolated = 1 - ramp
    interpolated = 1.0 / (rope.factor * rope.theta ** _exponents(head_dim))  # rounded as transformers rounds
    return interpolated * (1 - extrapolated) + frequencies * extrapolated


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
    return magnitude(1.0)
