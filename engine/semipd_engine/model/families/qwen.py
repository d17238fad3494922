"""Qwen's wiring: Llama's, with normed heads (Qwen 3), a sliding window in the layers that use one, and experts in place
of the feed-forward block in those that have them."""

from __future__ import annotations

from semipd_engine.model.layers.parts import Parts
from semipd_engine.model.stage import Stage


def layer(parts: Parts, index: int) -> list[Stage]:
    prefix, config = f"layers.{index}", parts.config
    attention = parts.attention(prefix, index, qk_norm=config.qk_norm, window=config.window(index))
    return parts.pre_norm(index, attention, parts.mlp(prefix, index))
