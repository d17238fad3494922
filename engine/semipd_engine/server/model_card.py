"""What the files beside the weights say: vocabulary, end-of-sequence ids, defaults, chat template, special tokens.

Reads config.json, generation_config.json, tokenizer_config.json, special_tokens_map.json and chat_template.*. Knows
neither the weights nor the tokenizer's own file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ModelCardError(Exception):
    """The model directory lacks a file or a field that the API needs. The message names it."""


@dataclass(frozen=True)
class SamplingDefaults:
    """generation_config.json, for what a request leaves open. None: not given there."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class ModelCard:
    name: str
    vocab_size: int
    """Rows of the embedding; the tokenizer may know fewer."""
    max_model_len: int
    """Tokens, as config.json says; 0 if it does not. Core may offer less."""
    eos_token_ids: tuple[int, ...]
    defaults: SamplingDefaults
    chat_templates: dict[str, str] = field(default_factory=dict)
    """Jinja source by name; the usual one is "default"."""
    special_tokens: dict[str, str] = field(default_factory=dict)


def load_model_card(directory: Path, served_name: str = "") -> ModelCard:
    """Read the model directory. Raises `ModelCardError`."""
    config = _read_json(directory / "config.json", required=True)
    config = config.get("text_config") or config  # null: a text model that went through a multimodal exporter
    if not isinstance(config, dict):
        raise ModelCardError(f"{directory / 'config.json'}: text_config must be an object, got {config!r}")
    generation = _read_json(directory / "generation_config.json")
    tokenizer_config = _read_json(directory / "tokenizer_config.json")
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise ModelCardError(f"{directory / 'config.json'}: vocab_size must be a positive integer, got {vocab_size!r}")
    eos = _ids(generation.get("eos_token_id")) or _ids(config.get("eos_token_id"))
    return ModelCard(
        name=served_name or directory.resolve().name,
        vocab_size=vocab_size,
        max_model_len=int(config.get("max_position_embeddings") or 0),
        eos_token_ids=eos,
        defaults=SamplingDefaults(**{name: generation.get(name) for name in SamplingDefaults.__dataclass_fields__}),
        chat_templates=_chat_templates(directory, tokenizer_config),
        special_tokens=_special_tokens(tokenizer_config | _read_json(directory / "special_tokens_map.json")),
    )


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise ModelCardError(f"{path} is missing; --model wants a Hugging Face model directory") from None
        return {}
    except ValueError as error:
        raise ModelCardError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelCardError(f"{path}: must hold a JSON object")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    """An id, a list of ids or nothing (Llama 3 and Qwen give lists)."""
    if isinstance(value, int):
        return (value,)
    return tuple(value) if isinstance(value, list) else ()


def _chat_templates(directory: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """The file chat_template.jinja wins over chat_template.json, and that over tokenizer_config.json."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return {"default": file.read_text(encoding="utf-8")}
    template = _read_json(directory / "chat_template.json").get("chat_template", tokenizer_config.get("chat_template"))
    if isinstance(template, str):
        return {"default": template}
    if not isinstance(template, list):
        return {}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in template}
    except (TypeError, KeyError):
        wrong = "an entry of the list chat_template must be an object with name and template"
        raise ModelCardError(f"{directory / 'tokenizer_config.json'}: {wrong}; repair or remove it") from None


def _special_tokens(source: dict[str, Any]) -> dict[str, str]:
    """Each special token is a string or an object with `content`."""
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = source.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens
