"""A whole Hugging Face folder of a llama with 536 parameters, written without torch: to be judged, not to run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 4,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 3,
    "torch_dtype": "float32",
}


LAYER = "model.layers.0."
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (4, 8),
    **{f"{LAYER}{name}_layernorm.weight": (8,) for name in ("input", "post_attention")},
    **{f"{LAYER}self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"},
    **{f"{LAYER}mlp.{name}_proj.weight": (8, 8) for name in ("gate", "up", "down")},
    "model.norm.weight": (8,),
    "lm_head.weight": (4, 8),
}
"""As transformers writes it."""


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = {word: number for number, word in enumerate(("<unk>", "a", "b", "</s>"))}
    Tokenizer(WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    write_tensors(folder)
    return folder


def write_tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: str = "F32") -> None:
    """model.safetensors, all zeros; four bytes an element, whatever `dtype` says."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def write(folder: Path, name: str, **values: Any) -> None:
    """These values into one of its JSON files, beside what is there."""
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))
