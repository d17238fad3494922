"""Llama 2 and 3, and models of that shape. Biases where config.json asks for them."""

from __future__ import annotations

from semipd_engine.cards.config import ModelConfig, refuse_other_layers
from semipd_engine.cards.fields import Fields


def llama(config: Fields, generation: Fields) -> ModelConfig:
    config.refuse_unless("sliding_window", None)
    refuse_other_layers(config, "full_attention")
    bias = config.flag("attention_bias")
    return ModelConfig.dense(
        config, generation, qkv_bias=bias, attention_output_bias=bias, mlp_bias=config.flag("mlp_bias")
    )
