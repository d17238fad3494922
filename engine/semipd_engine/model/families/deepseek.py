"""DeepSeek's wiring, V2 and V3: latent attention, then experts or, in the first layers, SwiGLU."""

from __future__ import annotations

from semipd_engine.model.layers.parts import Parts
from semipd_engine.model.stage import Stage


def layer(parts: Parts, index: int) -> list[Stage]:
    prefix = f"layers.{index}"
    return parts.pre_norm(index, parts.latent_attention(prefix, index), parts.mlp(prefix, index))
