"""The class of a tokenizer, where it is more than a name: transformers 5 builds LlamaTokenizer anew.

Vocabulary, merges and what is put around a text are those of tokenizer.json; how blanks become marks, before the
merges and back, is the class's, whatever the file says. Older files mark the beginning of each part between special
tokens; Llama was trained with one at the beginning of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BUILT_ANEW = ("LlamaTokenizer", "LlamaTokenizerFast")
OF_ANOTHER_CLASS = ("mistral", "qwen2")
"""Families whose tokenizers transformers takes for what the family has, whatever the folder says."""
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""What the class calls its special tokens where no file does."""
MARK = "\u2581"


def is_built_anew(
    tokenizer_config: dict[str, Any], config: dict[str, Any], source: Callable[[], dict[str, Any]]
) -> bool:
    """By tokenizer_config.json, config.json and tokenizer.json (`source`, asked for only where the others leave it
    open)."""
    name = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    if name not in BUILT_ANEW or config.get("model_type") in OF_ANOTHER_CLASS:
        return False
    file = source()
    model, steps = file.get("model"), (file.get("pre_tokenizer"), file.get("decoder"))
    return isinstance(model, dict) and model.get("type") == "BPE" and "'ByteLevel'" not in repr(steps)


def built_anew(source: dict[str, Any], tokenizer_config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json as the class has it."""
    model = source["model"]
    prefix = tokenizer_config.get("add_prefix_space") is not False
    scheme = "never" if not prefix else "always" if tokenizer_config.get("legacy") else "first"
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return source | {
        "model": {
            "type": "BPE",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": model["vocab"],
            "merges": model["merges"],
        },
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": decoders if prefix else decoders[:-1]},
    }
