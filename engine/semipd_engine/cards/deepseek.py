"""DeepSeek V2 (Lite too) and V3: latent attention, and experts beside a shared one from some layer on.

They differ in how experts are chosen: V2 by softmax, in groups or not; V3 by sigmoid, in groups, with a correction that
counts for the choice alone. V3's checkpoints hold FP8 blocks and a layer for multi-token prediction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from semipd_engine.cards.blocks import Latent, Mixture, Routing
from semipd_engine.cards.config import ModelConfig, layers_of, refuse_other_layers
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields


def deepseek_v2(config: Fields, generation: Fields) -> ModelConfig:
    for name, value in (("norm_topk_prob", False), ("scoring_func", "softmax"), ("moe_layer_freq", 1)):
        config.refuse_unless(name, value)
    method = config.get("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise ModelError("UnsupportedFeature", f"config.json: topk_method is {method!r}; this engine knows greedy and"
                         " group_limited_greedy")  # fmt: skip
    grouped = method != "greedy"
    routing = Routing(
        experts=config.positive("num_experts", config.positive("n_routed_experts", 64)),
        chosen=config.positive("num_experts_per_tok"),
        scale=config.above_zero("routed_scaling_factor", 1.0),
        groups=config.positive("n_group") if grouped else 1,
        groups_chosen=config.positive("topk_group") if grouped else 1,
    )
    return _deepseek(config, generation, routing, 1407, 2, 0, config.flag("mlp_bias"))


def deepseek_v3(config: Fields, generation: Fields) -> ModelConfig:
    for name, value in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1)):
        config.refuse_unless(name, value)
    routing = Routing(
        experts=config.positive("num_local_experts", config.positive("n_routed_experts", 256)),
        chosen=config.positive("num_experts_per_tok", 8),
        sigmoid=True,
        normalise=config.flag("norm_topk_prob", True, null=False),
        scale=config.above_zero("routed_scaling_factor", 2.5),
        groups=config.positive("n_group", 8),
        groups_chosen=config.positive("topk_group", 4),
    )
    config = config.filled(max_position_embeddings=4096)
    return _deepseek(config, generation, routing, 2048, 1, 3, False)


def _deepseek(
    config: Fields, generation: Fields, routing: Routing, inner: int, shared: int, dense: int, mlp_bias: bool
) -> ModelConfig:
    """`inner`, `shared`, `dense`: what counts where config.json lacks an expert's size, the number of shared ones, and
    that of the dense layers."""
    config.refuse_unless("sliding_window", None)
    refuse_other_layers(config, "full_attention")
    interleaved = not routing.sigmoid or config.flag("rope_interleave", True, null=False)  # V2 knows no other order
    latent, layers = Latent.parse(config, interleaved), layers_of(config)
    dense = config.whole("first_k_dense_replace", dense)
    inner = config.positive("moe_intermediate_size", inner)
    bias = config.flag("attention_bias")
    if mlp_bias:
        config.refuse_unless("mlp_bias", False)
    block = _fp8_block(config)
    card = ModelConfig.dense(
        config.without("quantization_config", "head_dim"),
        generation,
        head_dim=latent.rope_dim,
        qkv_bias=bias,
        attention_output_bias=bias,
        mixture=Mixture(
            routing.check(),
            inner,
            tuple(index >= dense for index in range(layers)),
            shared_size=inner * config.positive("n_shared_experts", shared),
            bias=routing.sigmoid,
        ),
    )
    extra = config.whole("num_nextn_predict_layers", config.whole("num_mtp_layers", 1)) if routing.sigmoid else 0
    return replace(card, latent=latent, fp8_block=block, ignored_layers=extra)


def _fp8_block(config: Fields) -> tuple[int, int] | None:
    """Rows and columns of a block that shares a scale. Raises `ModelError` for any other quantisation."""
    quantization = config.nested("quantization_config")
    if quantization is None:
        return None
    for name, value in (("quant_method", "fp8"), ("fmt", "e4m3")):
        quantization.refuse_unless(name, value)
    size = quantization.integers("weight_block_size")
    if len(size) != 2 or min(size) < 1:
        raise ModelError(
            "UnsupportedFeature",
            f"config.json: quantization_config: weight_block_size is {list(size)}; this engine reads FP8 in blocks of"
            " rows x columns",
        )
    return size[0], size[1]


def random_deepseek_v2(heads: int, inner: int) -> dict[str, Any]:
    return _random(heads, inner) | {"q_lora_rank": None, "topk_method": "greedy", "scoring_func": "softmax"}


def random_deepseek_v3(heads: int, inner: int) -> dict[str, Any]:
    groups = {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    choice = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 0}
    return _random(heads, inner) | groups | choice | {"q_lora_rank": 96}


def _random(heads: int, inner: int) -> dict[str, Any]:
    yarn = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 32, "beta_slow": 1}
    return {
        "num_key_value_heads": heads,
        "head_dim": 32,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": inner // 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "rope_scaling": yarn | {"mscale": 1.0, "mscale_all_dim": 1.0},
    }
