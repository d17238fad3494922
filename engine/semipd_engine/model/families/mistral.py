"""Mistral's wiring: Llama's, with a sliding window in every layer."""

from __future__ import annotations

from semipd_engine.model.layers.parts import Parts
from semipd_engine.model.stage import Stage


def layer(parts: Parts, index: int) -> list[Stage]:
    prefix = f"layers.{index}"
    attention = parts.attention(prefix, index, window=parts.config.window(index))
    return parts.pre_norm(index, attention, parts.swiglu(prefix))
