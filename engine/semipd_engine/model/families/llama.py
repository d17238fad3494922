"""Llama's wiring, and that of all whose layers are built alike: norm, attention, norm, SwiGLU."""

from __future__ import annotations

from semipd_engine.model.layers.parts import Parts
from semipd_engine.model.stage import Stage


def layer(parts: Parts, index: int) -> list[Stage]:
    prefix = f"layers.{index}"
    return parts.pre_norm(index, parts.attention(prefix, index), parts.swiglu(prefix))
