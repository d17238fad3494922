"""Qwen 2 and 2.5 (biased query, key and value) and the dense Qwen 3 (normalised queries and keys instead).

Both have a sliding window in config.json that counts only with `use_sliding_window`, and only in the layers from
`max_window_layers` on.
"""

from __future__ import annotations

from typing import Any

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.fields import Fields


def qwen2(config: Fields, generation: dict[str, Any]) -> ModelConfig:
    return ModelConfig.dense(
        config, generation, qkv_bias=True, window=_window(config), full_attention_layers=_full(config)
    )


def qwen3(config: Fields, generation: dict[str, Any]) -> ModelConfig:
    bias = config.flag("attention_bias")
    return ModelConfig.dense(
        config,
        generation,
        head_dim=128,
        qkv_bias=bias,
        attention_output_bias=bias,
        qk_norm=True,
        window=_window(config),
        full_attention_layers=_full(config),
    )


def _window(config: Fields) -> object:
    return config.get("sliding_window") if config.flag("use_sliding_window") else None


def _full(config: Fields) -> int:
    """Layers that see everything, from the first on; absent means 28."""
    layers = config.get("max_window_layers", 28)
    return layers if isinstance(layers, int) and config.flag("use_sliding_window") else 0
