"""Which tensors a model has: their names in a checkpoint, how the engine stacks them and how ranks would share them.

Checkpoint names are those of transformers' Llama, Qwen and DeepSeek families. Rows are the first dimension (output
features).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from semipd_engine.cards.blocks import Latent, Mixture
from semipd_engine.cards.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
"""In the usual spelling."""


@dataclass(frozen=True)
class Source:
    """One tensor of the checkpoint, or a part of it."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    rows: tuple[int, int] | None = None
    """The part: rows a .. b - 1; None: all."""
    transposed: bool = False
    """The engine wants the part's columns as rows."""
    pairs: tuple[int, int] | None = None
    """(n, r): of each n rows the last r lie in pairs, which the engine wants as first and second halves."""
    index: int | None = None
    """Of this matrix in a stack of them; None: the tensor is no stack."""

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Of what the engine takes."""
        whole = self.shape if self.index is None else self.shape[1:]
        first, last = self.rows or (0, whole[0])
        shape = (last - first, *whole[1:])
        return shape[::-1] if self.transposed else shape


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
    count: int = 0
    """So many matrices of one shape, each of as many sources: experts, heads. 0: one."""
    float32: bool = False
    """Kept so, whatever the model's dtype."""

    @property
    def each(self) -> int:
        """Sources of one matrix."""
        return len(self.sources) // max(1, self.count)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one matrix."""
        parts = [source.part_shape for source in self.sources[: self.each]]
        return (sum(part[0] for part in parts), *parts[0][1:])


def weight_specs(config: ModelConfig) -> list[WeightSpec]:
    """All tensors in the order of their use. Tied embeddings appear once, as `embedding`."""
    embedding = (config.vocab_size, config.hidden_size)
    name = LM_HEAD if config.spelling.head_alone else embedding_name(config)
    specs = [WeightSpec("embedding", (Source(name, embedding),), matrix=True, shard=0)]
    for layer in range(config.num_layers):
        specs += _layer(config, layer)
    specs.append(WeightSpec("norm", (Source(f"{config.spelling.prefix}norm.weight", (config.hidden_size,)),)))
    if not config.tie_word_embeddings:
        specs.append(WeightSpec("lm_head", (Source(LM_HEAD, embedding),), matrix=True, shard=0))
    return specs


def embedding_name(config: ModelConfig) -> str:
    return f"{config.spelling.prefix}embed_tokens.weight"


def checkpoint_tensors(specs: Iterable[WeightSpec]) -> list[Source]:
    """The tensors that these are made from, each whole and once, in the order of their use."""
    found = {source.name: Source(source.name, source.shape) for spec in specs for source in spec.sources}
    return list(found.values())


@dataclass(frozen=True)
class _Layer:
    """Names of one layer: where its weights come from and what the engine calls them."""

    source: str
    target: str
    fused: bool

    def norm(self, name: str, part: str, width: int) -> WeightSpec:
        return WeightSpec(f"{self.target}.{name}", (Source(f"{self.source}.{part}.weight", (width,)),))

    def linear(
        self, name: str, rows: dict[str, int], width: int, bias: bool, shard: int, pairs: tuple[int, int] | None = None
    ) -> Iterator[WeightSpec]:
        """The parts `rows` (name -> output features) stacked."""

        def sources(kind: str, *shape: int) -> tuple[Source, ...]:
            return tuple(Source(f"{self.source}.{part}.{kind}", (n, *shape), pairs=pairs) for part, n in rows.items())

        yield WeightSpec(f"{self.target}.{name}.weight", sources("weight", width), matrix=True, shard=shard)
        if bias:
            yield WeightSpec(f"{self.target}.{name}.bias", sources("bias"), shard=0 if shard == 0 else None)

    def swiglu(self, name: str, part: str, hidden: int, inner: int, bias: bool) -> Iterator[WeightSpec]:
        gate_up = {f"{part}.gate_proj": inner, f"{part}.up_proj": inner}
        yield from self.linear(f"{name}gate_up", gate_up, hidden, bias, 0)
        yield from self.linear(f"{name}down", {f"{part}.down_proj": hidden}, inner, bias, 1)

    def experts(self, name: str, parts: tuple[str, ...], count: int, shape: tuple[int, int], shard: int) -> WeightSpec:
        """Of each expert the `parts`, of this shape each, stacked."""
        if self.fused:
            stack = (count, len(parts) * shape[0], shape[1])
            tensor = f"{self.source}.mlp.experts.{'_'.join(part.removesuffix('_proj') for part in parts)}_proj"
            sources = tuple(Source(tensor, stack, index=expert) for expert in range(count))
        else:
            names = (f"{self.source}.mlp.experts.{expert}.{part}.weight" for expert in range(count) for part in parts)
            sources = tuple(Source(name, shape) for name in names)
        return WeightSpec(f"{self.target}.{name}.weight", sources, matrix=True, shard=shard, count=count)


def _layer(config: ModelConfig, index: int) -> Iterator[WeightSpec]:
    spelling = config.spelling
    layer = _Layer(f"{spelling.prefix}layers.{index}", f"layers.{index}", spelling.fused_experts)
    yield layer.norm("attention_norm", "input_layernorm", config.hidden_size)
    if config.latent is not None:
        yield from _latent(config, config.latent, layer)
    else:
        yield from _grouped_query(config, layer)
    yield layer.norm("mlp_norm", "post_attention_layernorm", config.hidden_size)
    mixture = config.experts(index)
    if mixture is not None:
        yield from _mixture(config, mixture, layer)
    else:
        yield from layer.swiglu("", "mlp", config.hidden_size, config.intermediate_size, config.mlp_bias)


def _grouped_query(config: ModelConfig, layer: _Layer) -> Iterator[WeightSpec]:
    q, kv, hidden = config.q_width, config.kv_width, config.hidden_size
    rows = {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
    yield from layer.linear("qkv", rows, hidden, config.qkv_bias, 0)
    if config.qk_norm:
        yield layer.norm("q_norm", "self_attn.q_norm", config.head_dim)
        yield layer.norm("k_norm", "self_attn.k_norm", config.head_dim)
    yield from layer.linear("attention_output", {"self_attn.o_proj": hidden}, q, config.attention_output_bias, 1)


def _latent(config: ModelConfig, latent: Latent, layer: _Layer) -> Iterator[WeightSpec]:
    """The matrix that makes keys and values of the cached vector falls into two for each head: one that takes a query
    to the vector's space, one that takes what was attended to the head's values. So keys and values are never made."""
    hidden, heads, bias = config.hidden_size, config.num_heads, config.qkv_bias
    pairs = (latent.query_dim, latent.rope_dim) if latent.interleaved else None
    if latent.query_rank:
        yield from layer.linear("q_a", {"self_attn.q_a_proj": latent.query_rank}, hidden, bias, 0)
        yield layer.norm("q_a_norm", "self_attn.q_a_layernorm", latent.query_rank)
    source, width = ("q_b_proj", latent.query_rank) if latent.query_rank else ("q_proj", hidden)
    yield from layer.linear("q", {f"self_attn.{source}": heads * latent.query_dim}, width, False, 0, pairs)
    pairs = (latent.width, latent.rope_dim) if latent.interleaved else None
    yield from layer.linear("kv_a", {"self_attn.kv_a_proj_with_mqa": latent.width}, hidden, bias, 0, pairs)
    yield layer.norm("kv_a_norm", "self_attn.kv_a_layernorm", latent.rank)
    size = latent.nope_dim + latent.value_dim
    name, shape = f"{layer.source}.self_attn.kv_b_proj.weight", (heads * size, latent.rank)
    starts = range(0, heads * size, size)
    keys = tuple(Source(name, shape, (at, at + latent.nope_dim), transposed=True) for at in starts)
    values = tuple(Source(name, shape, (at + latent.nope_dim, at + size)) for at in starts)
    yield WeightSpec(f"{layer.target}.to_latent.weight", keys, matrix=True, shard=0, count=heads)
    yield WeightSpec(f"{layer.target}.from_latent.weight", values, matrix=True, shard=0, count=heads)
    rows = {"self_attn.o_proj": hidden}
    yield from layer.linear("attention_output", rows, heads * latent.value_dim, config.attention_output_bias, 1)


def _mixture(config: ModelConfig, mixture: Mixture, layer: _Layer) -> Iterator[WeightSpec]:
    hidden, inner, count = config.hidden_size, mixture.intermediate_size, mixture.routing.experts
    yield WeightSpec(
        f"{layer.target}.router.weight", (Source(f"{layer.source}.mlp.gate.weight", (count, hidden)),), matrix=True
    )
    if mixture.bias:
        bias = Source(f"{layer.source}.mlp.gate.e_score_correction_bias", (count,))
        yield WeightSpec(f"{layer.target}.router.correction", (bias,), float32=True)
    yield layer.experts("experts.gate_up", ("gate_proj", "up_proj"), count, (inner, hidden), 0)
    yield layer.experts("experts.down", ("down_proj",), count, (hidden, inner), 1)
    if mixture.shared_size:
        yield from layer.swiglu("shared.", "mlp.shared_experts", hidden, mixture.shared_size, config.mlp_bias)
