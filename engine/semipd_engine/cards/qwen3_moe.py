"""Qwen 3 with experts: the dense one's attention, and a mixture in the layers that config.json says."""

from __future__ import annotations

from typing import Any

from semipd_engine.cards.blocks import Mixture, Routing
from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.fields import Fields


def qwen3_moe(config: Fields, generation: Fields) -> ModelConfig:
    bias = config.flag("attention_bias")
    layers = config.positive("num_hidden_layers")
    used = config.flag("use_sliding_window") and config.get("sliding_window", 4096) is not None
    window = config.positive("sliding_window", 4096) if used else 0
    return ModelConfig.dense(
        config,
        generation,
        qkv_bias=bias,
        attention_output_bias=bias,
        qk_norm=True,
        windows=(window,) * layers,
        mixture=Mixture(
            Routing(
                experts=config.positive("num_local_experts", config.positive("num_experts", 128)),
                chosen=config.positive("num_experts_per_tok", 8),
                normalise=config.flag("norm_topk_prob"),
            ).check(),
            config.positive("moe_intermediate_size", 768),
            _sparse(config, layers),
        ),
    )


def _sparse(config: Fields, layers: int) -> tuple[bool, ...]:
    """Every `decoder_sparse_step`-th layer, less `mlp_only_layers`."""
    step, dense = config.positive("decoder_sparse_step", 1), config.integers("mlp_only_layers")
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(layers))


def random_qwen3_moe(heads: int, inner: int) -> dict[str, Any]:
    return {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": inner // 4, "norm_topk_prob": True}
