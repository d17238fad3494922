"""Random models that behave like models: attention matters, and greedy tokens vary.

With the usual small initial weights a random decoder repeats one token whatever it is told, so tests with it could
not fail. Here every matrix keeps the size of its input, queries and keys are large enough that attention picks
positions, and the layers together outweigh the embedding of the last token.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semipd_engine.cards.registry import FAMILIES
from semipd_engine.cards.weights import EMBEDDING, Source

QUERY_KEY_GAIN = 1.7
"""Scores of attention get a standard deviation of about its square: some positions win, none alone."""
EMBEDDING_GAIN = 0.5


@dataclass(frozen=True)
class Preset:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    dtype: str


PRESETS = {
    "tiny": Preset(4096, 384, 1344, 6, 6, 2, 64, 4096, "float32"),  # 15 million parameters
    "small": Preset(32000, 1024, 4864, 24, 16, 8, 64, 8192, "bfloat16"),  # 0.5 billion
}


def model_config(preset: Preset, architecture: str, eos_token_ids: list[int]) -> dict[str, Any]:
    """config.json, spelt so that transformers 4 and 5 read it."""
    name = "".join(part.capitalize() for part in architecture.split("_"))
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": architecture,
        "vocab_size": preset.vocab_size,
        "hidden_size": preset.hidden_size,
        "intermediate_size": preset.intermediate_size,
        "num_hidden_layers": preset.num_layers,
        "num_attention_heads": preset.num_heads,
        "num_key_value_heads": preset.num_kv_heads,
        "head_dim": preset.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": preset.max_position_embeddings,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": eos_token_ids,
        "torch_dtype": preset.dtype,
        **FAMILIES[architecture].random_fields(preset.num_heads, preset.intermediate_size),
    }


def random_tensor(source: Source, seed: int) -> Tensor:
    """float32, decided by seed and name alone."""
    digest = hashlib.blake2b(f"{seed}:{source.name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    name = source.name
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return torch.full(source.shape, QUERY_KEY_GAIN)
    if name.endswith("norm.weight"):
        return torch.rand(source.shape, generator=generator).add_(0.5)
    values = torch.randn(source.shape, generator=generator)
    if name.endswith("bias"):
        return values.mul_(0.2)
    if name == EMBEDDING:
        return values.mul_(EMBEDDING_GAIN)
    gain = QUERY_KEY_GAIN if name.endswith(("q_proj.weight", "q_b_proj.weight", "k_proj.weight")) else 1.0
    return values.mul_(gain / source.shape[1] ** 0.5)
