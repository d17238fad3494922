"""Qwen 2 and 2.5 (biased query, key and value) and the dense Qwen 3 (normalised queries and keys instead).

Both have a sliding window in config.json that counts only with `use_sliding_window`, and only in the layers that
`layer_types` names, or from `max_window_layers` on (absent means 28).
"""

from __future__ import annotations

from semipd_engine.cards.config import ModelConfig, sliding_windows
from semipd_engine.cards.fields import Fields


def qwen2(config: Fields, generation: Fields) -> ModelConfig:
    return ModelConfig.dense(config, generation, qkv_bias=True, windows=_windows(config))


def qwen3(config: Fields, generation: Fields) -> ModelConfig:
    bias = config.flag("attention_bias")
    return ModelConfig.dense(
        config,
        generation,
        head_dim=128,
        qkv_bias=bias,
        attention_output_bias=bias,
        qk_norm=True,
        windows=_windows(config),
    )


def _windows(config: Fields) -> tuple[int, ...]:
    if not config.flag("use_sliding_window") or config.get("sliding_window", 4096) is None:
        return ()
    full = config.get("max_window_layers", 28)
    if not isinstance(full, int):
        full = config.positive("max_window_layers")
    return sliding_windows(config, config.positive("sliding_window", 4096), full)
