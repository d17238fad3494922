"""Qwen 3's wiring, with experts in place of the feed-forward block where the layer has them."""

from __future__ import annotations

from semipd_engine.model.layers.parts import Parts
from semipd_engine.model.stage import Stage


def layer(parts: Parts, index: int) -> list[Stage]:
    prefix = f"layers.{index}"
    attention = parts.attention(prefix, index, qk_norm=True, window=parts.config.window(index))
    return parts.pre_norm(index, attention, parts.mlp(prefix, index))
