"""Which tensors a model has: their names in a checkpoint, how the engine stacks them and how ranks would share them.

Checkpoint names are those of transformers' Llama family. Rows are the first dimension (output features).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from semipd_engine.cards.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """One tensor of the checkpoint and its shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightSpec:
    """One tensor of the engine: its sources stacked along the rows, in this order."""

    name: str
    sources: tuple[Source, ...]
    matrix: bool = False
    """It is multiplied with: the engine keeps it in the format of its kernels. Else a vector, kept as it is."""
    shard: int | None = None
    """The dimension of its sources that tensor-parallel ranks divide (0: features out, by heads; 1: features in, whose
    products are then summed); None: every rank has all of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])


def weight_specs(config: ModelConfig) -> list[WeightSpec]:
    """All tensors in the order of their use. Tied embeddings appear once, as `embedding`."""
    embedding = (config.vocab_size, config.hidden_size)
    specs = [WeightSpec("embedding", (Source(EMBEDDING, embedding),), matrix=True, shard=0)]
    for layer in range(config.num_layers):
        specs += _layer(config, layer)
    specs.append(WeightSpec("norm", (Source("model.norm.weight", (config.hidden_size,)),)))
    if not config.tie_word_embeddings:
        specs.append(WeightSpec("lm_head", (Source(LM_HEAD, embedding),), matrix=True, shard=0))
    return specs


def _layer(config: ModelConfig, layer: int) -> Iterator[WeightSpec]:
    source, target = f"model.layers.{layer}", f"layers.{layer}"
    hidden, inner = config.hidden_size, config.intermediate_size

    def stack(name: str, rows: dict[str, int], width: int, bias: bool, shard: int) -> Iterator[WeightSpec]:
        weights = tuple(Source(f"{source}.{part}.weight", (n, width)) for part, n in rows.items())
        yield WeightSpec(f"{target}.{name}.weight", weights, matrix=True, shard=shard)
        if bias:
            biases = tuple(Source(f"{source}.{part}.bias", (n,)) for part, n in rows.items())
            yield WeightSpec(f"{target}.{name}.bias", biases, shard=0 if shard == 0 else None)

    def norm(name: str, part: str, width: int) -> WeightSpec:
        return WeightSpec(f"{target}.{name}", (Source(f"{source}.{part}.weight", (width,)),))

    q, kv = config.q_width, config.kv_width
    yield norm("attention_norm", "input_layernorm", hidden)
    yield from stack(
        "qkv", {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}, hidden, config.qkv_bias, 0
    )
    if config.qk_norm:
        yield norm("q_norm", "self_attn.q_norm", config.head_dim)
        yield norm("k_norm", "self_attn.k_norm", config.head_dim)
    yield from stack("attention_output", {"self_attn.o_proj": hidden}, q, config.attention_output_bias, 1)
    yield norm("mlp_norm", "post_attention_layernorm", hidden)
    yield from stack("gate_up", {"mlp.gate_proj": inner, "mlp.up_proj": inner}, hidden, config.mlp_bias, 0)
    yield from stack("down", {"mlp.down_proj": hidden}, inner, config.mlp_bias, 1)
