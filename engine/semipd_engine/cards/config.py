"""What a decoder-only model is: sizes, rotary positions, KV layout. Torch-free: core and launcher size with it.

Reads the fields as transformers 4 writes them (`rope_theta`, `rope_scaling`, `torch_dtype`) and as 5 does
(`rope_parameters`, `dtype`). What differs between families is in their own modules; knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semipd_engine.cards.blocks import Latent, Mixture
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields
from semipd_engine.cards.rope import RopeConfig
from semipd_engine.memory.layout import KVComponent, KVLayout

DTYPES = ("float32", "float16", "bfloat16")
MOST_LAYERS = 4096
FOREIGN: Mapping[str, object] = {
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "clip_qkv")),
    **dict.fromkeys(("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier"), 1.0),
    **dict.fromkeys(("use_qk_norm", "qk_layernorm", "use_parallel_residual", "alibi", "use_mrope"), False),
    **dict.fromkeys(("attention_multiplier", "attention_chunk_size", "no_rope_layers", "hidden_activation")),
    **dict.fromkeys(("text_config", "per_layer_config", "transformers_weights")),
    "is_causal": True,
    "use_bidirectional_attention": False,
}
"""Fields of other families that change what a model computes, with the value that changes nothing. transformers would
read over them in ours; a folder that has one was trained with it, and would answer wrongly without a word of ours."""


@dataclass(frozen=True)
class Spelling:
    """How a checkpoint names and packs what others hold, too. Its files say it (`cards.checkpoint.spelt`)."""

    prefix: str = "model."
    """Of all but the output layer; empty where a base model was saved."""
    head_alone: bool = False
    """The one matrix of tied embeddings lies under the output layer's name."""
    fused_experts: bool = False
    """A layer's experts are two tensors of three dimensions, as transformers 5 holds them."""


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer: grouped-query or latent attention, rotary positions, RMSNorm, SwiGLU or experts."""

    architecture: str
    """`model_type` of config.json: a key of `cards.registry.FAMILIES`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    """Longest sequence in tokens."""
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMSNorm over head_dim of each query and key head, before the rotation (Qwen3)."""
    dtype: str
    """The checkpoint's: float32, float16 or bfloat16."""
    eos_token_ids: tuple[int, ...]
    """Any of these ends a sequence. `generation_config.json` wins over `config.json`, as in transformers."""
    bos_token_id: int | None
    windows: tuple[int, ...] = ()
    """For each layer the positions that a row sees, 0 is all; empty: all of them see all."""
    mixture: Mixture | None = None
    """None: every layer is dense."""
    latent: Latent | None = None
    """None: attention is grouped-query."""
    fp8_block: tuple[int, int] | None = None
    """The checkpoint holds matrices as FP8 (E4M3) with a scale for each block of so many rows and columns."""
    ignored_layers: int = 0
    """Layers behind the last that the checkpoint may hold and the model does without (multi-token prediction)."""
    spelling: Spelling = Spelling()

    @classmethod
    def dense(
        cls,
        config: Fields,
        generation: Fields,
        *,
        head_dim: int = 0,
        qkv_bias: bool = False,
        attention_output_bias: bool = False,
        mlp_bias: bool = False,
        qk_norm: bool = False,
        windows: tuple[int, ...] = (),
        mixture: Mixture | None = None,
    ) -> ModelConfig:
        """The fields that all families spell alike; the rest is what the family says.

        `head_dim`: where config.json has none; 0: hidden_size / num_attention_heads. Raises `ModelError`, naming the
        field.
        """
        if config.get("hidden_act") != "swish":  # another word for it
            config.refuse_unless("hidden_act", "silu")
        if (quantised := config.nested("quantization_config")) is not None:
            method = quantised.get("quant_method")
            raise ModelError(
                "UnsupportedFeature",
                f"config.json: quantization_config: quant_method is {method!r}; this engine reads no quantised weights "
                "but DeepSeek's FP8: take the original model",
            )
        for name, neutral in FOREIGN.items():
            config.refuse_unless(name, neutral)
        hidden_size, num_heads = config.positive("hidden_size"), config.positive("num_attention_heads")
        num_kv_heads = config.positive("num_key_value_heads", num_heads)
        head_dim = config.positive("head_dim", head_dim or hidden_size // num_heads)
        if num_heads % num_kv_heads or head_dim % 2:
            raise ModelError(
                "InvalidConfig",
                f"config.json: num_attention_heads ({num_heads}) must be a multiple of num_key_value_heads"
                f" ({num_kv_heads}), and head_dim ({head_dim}) even",
            )
        return cls(
            architecture=config.text("model_type"),
            vocab_size=config.positive("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.positive("intermediate_size"),
            num_layers=layers_of(config),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_position_embeddings=config.positive("max_position_embeddings", 2048),
            rms_norm_eps=config.not_negative("rms_norm_eps", 1e-6),
            rope=RopeConfig.parse(config),
            tie_word_embeddings=config.flag("tie_word_embeddings"),
            qkv_bias=qkv_bias,
            attention_output_bias=attention_output_bias,
            mlp_bias=mlp_bias,
            qk_norm=qk_norm,
            dtype=_dtype(config),
            eos_token_ids=generation.integers("eos_token_id") or config.integers("eos_token_id"),
            bos_token_id=next(iter(config.integers("bos_token_id")), None),
            windows=windows,
            mixture=mixture,
        )

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    def window(self, layer: int) -> int:
        """Positions that a row sees in this layer; 0: all."""
        return self.windows[layer] if self.windows else 0

    @property
    def attention_scale(self) -> float:
        """Of the scores. Latent models take the magnitude of a stretched rotation into it."""
        if self.latent is None:
            return float(self.head_dim**-0.5)
        return float(self.latent.query_dim**-0.5) * self.rope.score_scale

    def experts(self, layer: int) -> Mixture | None:
        """None: the layer is dense."""
        return self.mixture if self.mixture is not None and self.mixture.layers[layer] else None

    def kv_layout(self, block_size: int, itemsize: int) -> KVLayout:
        """`block_size` in tokens, `itemsize` in bytes of a cache element."""
        if self.latent is not None:
            components: tuple[KVComponent, ...] = (KVComponent("latent", self.latent.width),)
        else:
            components = (KVComponent("key", self.kv_width), KVComponent("value", self.kv_width))
        return KVLayout(self.num_layers, components, block_size, itemsize)


def _dtype(config: Fields) -> str:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    name = name.removeprefix("torch.") if isinstance(name, str) else name
    if name not in DTYPES:
        raise ModelError("UnsupportedDtype", f"config.json: dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return str(name)


def layers_of(config: Fields) -> int:
    """Raises `ModelError`, also for more than any model has: everything is made for each layer."""
    layers = config.positive("num_hidden_layers")
    if layers > MOST_LAYERS:
        raise ModelError("InvalidConfig", f"config.json: num_hidden_layers is {layers}; expected {MOST_LAYERS} at most")
    return layers


def refuse_other_layers(config: Fields, kind: str) -> None:
    """All layers of the family are of this kind: raises `ModelError` where `layer_types` says otherwise."""
    if _kinds(config) != [kind] * layers_of(config):
        config.refuse_unless("layer_types", f"{kind} in each layer")


def window_of(config: Fields) -> int:
    """Positions that a row sees, itself included. Raises `ModelError`, also for a row that would see itself alone."""
    window = config.positive("sliding_window", 4096)
    if window < 2:
        config.refuse_unless("sliding_window", "2 positions or more")
    return window


def sliding_windows(config: Fields, window: int, full: int = 0) -> tuple[int, ...]:
    """A window of so many positions in the layers from `full` on; `layer_types`, where config.json has it, says which
    layers instead. Raises `ModelError`."""
    layers = layers_of(config)
    full = max(0, min(full, layers))
    kinds = _kinds(config) or ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    known = {"full_attention": 0, "sliding_attention": window}
    if (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or not all(isinstance(kind, str) and kind in known for kind in kinds)
    ):
        raise ModelError(
            "InvalidConfig", f"config.json: layer_types must name {' or '.join(known)} for each of {layers} layers"
        )
    return tuple(known[kind] for kind in kinds)


def _kinds(config: Fields) -> Any:
    """`layer_types`, an older name for full attention read as today's."""
    kinds = config.get("layer_types")
    return ["full_attention" if kind == "attention" else kind for kind in kinds] if isinstance(kinds, list) else kinds
