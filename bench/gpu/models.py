"""The models and steps for which predictions are registered (`docs/gpu/predictions.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.fields import Fields
from semipd_engine.cards.registry import parse_card

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "1B": _LLAMA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
    | {"tie_word_embeddings": True},
    "8B": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
    | {"tie_word_embeddings": False},
    "DeepSeek-V2-Lite": {
        "model_type": "deepseek_v2",
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
    },
}
"""config.json of Llama 3.2 1 B and Llama 3.1 8 B (without their rotary scaling, which costs nothing), and of
DeepSeek-V2-Lite."""


def card(name: str, **changes: object) -> ModelConfig:
    """`changes`: fields of config.json, to make a model smaller."""
    return parse_card(Fields({**CONFIGS[name], **changes}, "config.json"))


@dataclass(frozen=True)
class Shape:
    """A step: `sequences` of `new` rows each, whose last position is `context`."""

    sequences: int
    new: int
    context: int

    @property
    def rows(self) -> int:
        return self.sequences * self.new

    @property
    def visible(self) -> int:
        """Positions seen, summed over the rows."""
        return self.sequences * sum(range(self.context - self.new + 1, self.context + 1))


CHUNK = 2048
"""Tokens of one step of a long prompt."""
CONTEXT = 2048
"""Of each decoding sequence."""
CASES: Mapping[str, tuple[Shape, ...]] = {
    **{f"decode {batch}": (Shape(batch, 1, CONTEXT),) for batch in (1, 16, 64)},
    **{f"prefill {n}": tuple(Shape(1, CHUNK, end) for end in range(CHUNK, n + 1, CHUNK)) for n in (2048, 8192)},
}
"""What is predicted: the steps of a case run one after the other."""
