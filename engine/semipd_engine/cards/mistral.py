"""Mistral: no biases, and a sliding window in every layer (absent means 4,096, null means none)."""

from __future__ import annotations

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.fields import Fields


def mistral(config: Fields, generation: Fields) -> ModelConfig:
    if config.get("sliding_window", 4096) is None:
        return ModelConfig.dense(config, generation)
    window = config.positive("sliding_window", 4096)
    windows = (window,) * config.positive("num_hidden_layers")
    return ModelConfig.dense(config, generation, windows=windows)
