"""What a dense decoder-only model is: sizes, rotary positions, KV layout. Torch-free: core and launcher size with it.

Reads the fields as transformers 4 writes them (`rope_theta`, `rope_scaling`, `torch_dtype`) and as 5 does
(`rope_parameters`, `dtype`). What differs between families is in their own modules; knows nothing of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields
from semipd_engine.cards.rope import RopeConfig
from semipd_engine.memory.layout import KVComponent, KVLayout

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer: grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

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
    sliding_window: int = 0
    """Positions that a row sees in the layers from `full_attention_layers` on; 0: all."""
    full_attention_layers: int = 0

    @classmethod
    def dense(
        cls,
        config: Fields,
        generation: dict[str, Any],
        *,
        head_dim: int = 0,
        qkv_bias: bool = False,
        attention_output_bias: bool = False,
        mlp_bias: bool = False,
        qk_norm: bool = False,
        window: object = None,
        full_attention_layers: int = 0,
    ) -> ModelConfig:
        """The fields that all families spell alike; the rest is what the family says.

        `head_dim`: where config.json has none; 0: hidden_size / num_attention_heads. `window`: anything but an int is
        no window. Raises `ModelError`, naming the field.
        """
        config.refuse_unless("hidden_act", "silu")
        config.refuse_unless("quantization_config", None)
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
            num_layers=config.positive("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_position_embeddings=config.positive("max_position_embeddings", 2048),
            rms_norm_eps=config.number("rms_norm_eps", 1e-6),
            rope=RopeConfig.parse(config),
            tie_word_embeddings=config.flag("tie_word_embeddings"),
            qkv_bias=qkv_bias,
            attention_output_bias=attention_output_bias,
            mlp_bias=mlp_bias,
            qk_norm=qk_norm,
            dtype=_dtype(config),
            eos_token_ids=_token_ids(generation.get("eos_token_id")) or _token_ids(config.get("eos_token_id")),
            bos_token_id=next(iter(_token_ids(config.get("bos_token_id"))), None),
            sliding_window=window if isinstance(window, int) else 0,
            full_attention_layers=full_attention_layers,
        )

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    def window(self, layer: int) -> int:
        """Positions that a row sees in this layer; 0: all."""
        return self.sliding_window if layer >= self.full_attention_layers else 0

    def kv_layout(self, block_size: int, itemsize: int) -> KVLayout:
        """`block_size` in tokens, `itemsize` in bytes of a cache element."""
        components = (KVComponent("key", self.kv_width), KVComponent("value", self.kv_width))
        return KVLayout(self.num_layers, components, block_size, itemsize)


def _dtype(config: Fields) -> str:
    name = config.get("dtype", None) or config.get("torch_dtype", None) or "float32"
    if name not in DTYPES:
        raise ModelError("UnsupportedDtype", f"config.json: dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return str(name)


def _token_ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(int(token) for token in value) if isinstance(value, list) else ()
