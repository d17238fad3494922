"""Qwen 2 and 2.5 (biased query, key and value), Qwen 3 (normalised queries and keys instead), and Qwen 3 with experts
in the layers that config.json says.

All have a sliding window in config.json that counts only with `use_sliding_window`: in dense models in the layers that
`layer_types` names, or from `max_window_layers` on (absent means 28); with experts in every layer.
"""

from __future__ import annotations

from typing import Any

from semipd_engine.cards.blocks import Mixture, Routing
from semipd_engine.cards.config import ModelConfig, layers_of, refuse_other_layers, sliding_windows, window_of
from semipd_engine.cards.fields import Fields

_DENSE = {"num_key_value_heads": 32, "max_position_embeddings": 32768}


def qwen2(config: Fields, generation: Fields) -> ModelConfig:
    config = config.filled(**_DENSE)
    return ModelConfig.dense(config, generation, qkv_bias=True, windows=_windows(config))


def qwen3(config: Fields, generation: Fields) -> ModelConfig:
    config = config.filled(**_DENSE)
    return _qwen3(config, generation, _windows(config), head_dim=128)


def qwen3_moe(config: Fields, generation: Fields) -> ModelConfig:
    config = config.filled(num_key_value_heads=4, max_position_embeddings=32768, intermediate_size=6144)
    layers = layers_of(config)
    mixture = Mixture(
        Routing(
            experts=config.positive("num_local_experts", config.positive("num_experts", 128)),
            chosen=config.positive("num_experts_per_tok", 8),
            normalise=config.flag("norm_topk_prob"),
        ).check(),
        config.positive("moe_intermediate_size", 768),
        _sparse(config, layers),
    )
    window = _window(config)
    refuse_other_layers(config, "sliding_attention" if window else "full_attention")
    return _qwen3(config, generation, (window,) * layers, mixture=mixture)


def random_qwen3_moe(heads: int, inner: int) -> dict[str, Any]:
    return {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": inner // 4, "norm_topk_prob": True}


def _qwen3(
    config: Fields,
    generation: Fields,
    windows: tuple[int, ...],
    head_dim: int = 0,
    mixture: Mixture | None = None,
) -> ModelConfig:
    bias = config.flag("attention_bias")
    return ModelConfig.dense(
        config,
        generation,
        head_dim=head_dim,
        qkv_bias=bias,
        attention_output_bias=bias,
        qk_norm=True,
        windows=windows,
        mixture=mixture,
    )


def _sparse(config: Fields, layers: int) -> tuple[bool, ...]:
    """Every `decoder_sparse_step`-th layer, less `mlp_only_layers`."""
    step, dense = config.positive("decoder_sparse_step", 1), config.integers("mlp_only_layers")
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(layers))


def _window(config: Fields) -> int:
    """Positions of a window that is in use; 0: none."""
    if not config.flag("use_sliding_window") or config.get("sliding_window", 4096) is None:
        return 0
    return window_of(config)


def _windows(config: Fields) -> tuple[int, ...]:
    window = _window(config)
    if not window:
        refuse_other_layers(config, "full_attention")
        return ()
    full = config.get("max_window_layers", 28)
    if not isinstance(full, int):
        full = config.positive("max_window_layers")
    return sliding_windows(config, window, full)
