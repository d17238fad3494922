"""Mistral: no biases, and a sliding window in every layer (absent means 4,096, null means none)."""

from __future__ import annotations

from semipd_engine.cards.config import ModelConfig, layers_of, refuse_other_layers, window_of
from semipd_engine.cards.fields import Fields


def mistral(config: Fields, generation: Fields) -> ModelConfig:
    config = config.filled(num_key_value_heads=8, max_position_embeddings=131072)
    if config.get("sliding_window", 4096) is None:
        refuse_other_layers(config, "full_attention")
        return ModelConfig.dense(config, generation)
    refuse_other_layers(config, "sliding_attention")
    return ModelConfig.dense(config, generation, windows=(window_of(config),) * layers_of(config))
