"""The part of a Hugging Face model directory that says what to build: `config.json` and `generation_config.json`.

Reads the files as transformers 4 writes them (`rope_theta`, `rope_scaling`, `torch_dtype`) and as 5 does
(`rope_parameters`, `dtype`). Torch-free: core and launcher import it to size things. Knows nothing of weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipd_engine.memory.layout import KVComponent, KVLayout
from semipd_engine.model.errors import ModelError
from semipd_engine.model.fields import Fields
from semipd_engine.model.rope_config import RopeConfig

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer: grouped-query attention, rotary positions, RMSNorm, SwiGLU."""

    architecture: str
    """`model_type` of config.json: one of `ARCHITECTURES`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    """Longest sequence in tokens. A model with sliding-window attention is served up to its window only, where
    sliding and full attention are the same."""
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

    @classmethod
    def from_dir(cls, path: Path | str) -> ModelConfig:
        """Raises `ModelError` for a missing or broken file and for what this engine cannot run, naming the field."""
        directory = Path(path)
        config = Fields(read_json(directory / "config.json"), "config.json")
        generation: dict[str, Any] = {}
        if (directory / "generation_config.json").exists():
            generation = read_json(directory / "generation_config.json")
        return cls.parse(config, generation)

    @classmethod
    def parse(cls, config: Fields, generation: dict[str, Any]) -> ModelConfig:
        architecture = config.text("model_type")
        if architecture not in ARCHITECTURES:
            raise ModelError(
                "UnsupportedArchitecture",
                f"config.json: model_type is {architecture!r}; this engine runs {', '.join(ARCHITECTURES)}",
            )
        config.refuse_unless("hidden_act", "silu")
        config.refuse_unless("quantization_config", None)
        hidden_size, num_heads = config.positive("hidden_size"), config.positive("num_attention_heads")
        num_kv_heads = config.positive("num_key_value_heads", num_heads)
        head_dim = config.positive("head_dim", 128 if architecture == "qwen3" else hidden_size // num_heads)
        if num_heads % num_kv_heads or head_dim % 2:
            raise ModelError(
                "InvalidConfig",
                f"config.json: num_attention_heads ({num_heads}) must be a multiple of num_key_value_heads"
                f" ({num_kv_heads}), and head_dim ({head_dim}) even",
            )
        bias = config.flag("attention_bias") and architecture in ("llama", "qwen3")
        return cls(
            architecture=architecture,
            vocab_size=config.positive("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.positive("intermediate_size"),
            num_layers=config.positive("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_position_embeddings=_max_length(config, architecture),
            rms_norm_eps=config.number("rms_norm_eps", 1e-6),
            rope=RopeConfig.parse(config),
            tie_word_embeddings=config.flag("tie_word_embeddings"),
            qkv_bias=bias or architecture == "qwen2",
            attention_output_bias=bias,
            mlp_bias=config.flag("mlp_bias") and architecture == "llama",
            qk_norm=architecture == "qwen3",
            dtype=_dtype(config),
            eos_token_ids=_token_ids(generation.get("eos_token_id")) or _token_ids(config.get("eos_token_id")),
            bos_token_id=next(iter(_token_ids(config.get("bos_token_id"))), None),
        )

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    def kv_layout(self, block_size: int, itemsize: int) -> KVLayout:
        """`block_size` in tokens, `itemsize` in bytes of a cache element."""
        components = (KVComponent("key", self.kv_width), KVComponent("value", self.kv_width))
        return KVLayout(self.num_layers, components, block_size, itemsize)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises `ModelError`: NotFound, InvalidConfig."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("NotFound", f"{path} does not exist; a Hugging Face model directory has {path.name}") from None
    except (OSError, ValueError) as error:
        raise ModelError("InvalidConfig", f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelError("InvalidConfig", f"{path}: expected a JSON object")
    return value


def _max_length(config: Fields, architecture: str) -> int:
    longest = config.positive("max_position_embeddings", 2048)
    window = config.get("sliding_window", 4096 if architecture == "mistral" else None)
    slides = architecture == "mistral" or config.flag("use_sliding_window")
    return min(longest, window) if slides and isinstance(window, int) else longest


def _dtype(config: Fields) -> str:
    name = config.get("dtype", None) or config.get("torch_dtype", None) or "float32"
    if name not in DTYPES:
        raise ModelError("UnsupportedDtype", f"config.json: dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return str(name)


def _token_ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(int(token) for token in value) if isinstance(value, list) else ()
