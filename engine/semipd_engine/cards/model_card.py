"""What the files beside the weights say: vocabulary, end-of-sequence ids, defaults, chat template, special tokens.

Reads config.json, generation_config.json, tokenizer_config.json, special_tokens_map.json and chat_template.*; of the
tokenizer's own file whether its class counts for more. Does not know the weights.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import BROKEN, Fields, no_file, not_json
from semipd_engine.cards.tokenizer_class import SPECIAL, is_built_anew

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TURN_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|eot|>", "<end_of_turn>", "<turn|>"),
    *("<|end_of_turn|>", "<|end_of_sentence|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|return|>"),
)
"""How published chat templates close a turn. One of these ends an answer where the model's own template writes it,
whatever the configuration forgets."""

log = logging.getLogger(__name__)


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
    end_tokens: tuple[str, ...] = ()
    """Tokens by their text that end an answer beside `eos_token_ids`: the tokenizer's, and the template's turn end."""

    def with_ends(self, id_of: Callable[[str], int | None]) -> ModelCard:
        """The card with the ids of its `end_tokens`, as the tokenizer knows them."""
        found = (id_of(token) for token in self.end_tokens)
        ids = (*self.eos_token_ids, *(one for one in found if one is not None and one < self.vocab_size))
        return replace(self, eos_token_ids=tuple(dict.fromkeys(ids)))


def load_model_card(directory: Path, served_name: str = "") -> ModelCard:
    """Read the model directory. Raises `ModelCardError`."""
    config = _read_json(directory / "config.json", required=True)
    generation = _read_json(directory / "generation_config.json")
    tokenizer_config = _read_json(directory / "tokenizer_config.json")
    fields = Fields(config, str(directory / "config.json"))
    try:
        vocab_size = fields.positive("vocab_size")
        longest = fields.positive("max_position_embeddings") if fields.get("max_position_embeddings") else 0
        eos = _ends(Fields(generation, str(directory / "generation_config.json")), vocab_size)
        eos = eos or _ends(fields, vocab_size)
    except ModelError as error:
        raise ModelCardError(str(error)) from None
    templates = _chat_templates(directory, tokenizer_config)
    special = special_tokens(tokenizer_config, _read_json(directory / "special_tokens_map.json"))
    if is_built_anew(tokenizer_config, config, lambda: _read_json(directory / "tokenizer.json")):
        special = SPECIAL | special
    ends = [token for name in ("eos_token", "eot_token") if (token := token_text(special.get(name)))]
    ends += [token for token in TURN_ENDS if any(token in template for template in templates.values())]
    return ModelCard(
        name=served_name or directory.resolve().name,
        vocab_size=vocab_size,
        max_model_len=longest,
        eos_token_ids=eos,
        defaults=_defaults(generation, directory / "generation_config.json"),
        chat_templates=templates,
        special_tokens={name: text for name in SPECIAL_TOKENS if (text := token_text(special.get(name))) is not None},
        end_tokens=tuple(dict.fromkeys(ends)),
    )


def special_tokens(tokenizer_config: dict[str, Any], special_map: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with what the older special_tokens_map.json says beside it. That wins, as in transformers,
    but where the first lists the added tokens and so has all."""
    listed = "added_tokens_decoder" in tokenizer_config
    return special_map | tokenizer_config if listed else tokenizer_config | special_map


def _ends(fields: Fields, vocab_size: int) -> tuple[int, ...]:
    """Raises `ModelError` for an id that the model has no row for: no answer would ever end there."""
    ids = fields.integers("eos_token_id")
    if not all(0 <= one < vocab_size for one in ids):
        raise fields.error("eos_token_id", f"ids below vocab_size ({vocab_size})")
    return ids


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = f"{path} is missing; --model wants a Hugging Face model directory" if required else ""
        if problem := no_file(path) or missing:
            raise ModelCardError(problem) from None
        return {}
    except BROKEN as error:
        raise ModelCardError(not_json(path, error)) from None
    if not isinstance(value, dict):
        raise ModelCardError(f"{path}: must hold a JSON object")
    return value


_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, math.inf),
    "top_p": (0, 1),
    "top_k": (-1, math.inf),
    "min_p": (0, 1),
    "repetition_penalty": (1e-6, math.inf),
    "max_new_tokens": (1, math.inf),
}
"""What a default may be, ends included."""
_COUNTS = ("top_k", "max_new_tokens")


def _defaults(generation: dict[str, Any], path: Path) -> SamplingDefaults:
    """A number written as a string counts; what cannot be a default is left out with a warning, since each request may
    name its own."""
    given: dict[str, Any] = {}
    for name, (low, high) in _RANGES.items():
        value = generation.get(name)
        if value is None:
            continue
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high or not math.isfinite(number) or (name in _COUNTS and number != int(number)):
            log.warning("%s: %s is %r, which is no default: it is ignored", path, name, value)
            continue
        given[name] = int(number) if name in _COUNTS else number
    return SamplingDefaults(**given)


def _chat_templates(directory: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """The file chat_template.jinja, with named ones in additional_chat_templates, wins over chat_template.json, and
    that over tokenizer_config.json."""
    file = directory / "chat_template.jinja"
    if file.exists():
        named = sorted((directory / "additional_chat_templates").glob("*.jinja"))
        try:
            return {path.stem: path.read_text(encoding="utf-8") for path in named} | {
                "default": file.read_text(encoding="utf-8")
            }
        except (OSError, ValueError) as error:
            raise ModelCardError(f"{file}: {error}") from None
    template = _read_json(directory / "chat_template.json").get("chat_template", tokenizer_config.get("chat_template"))
    if isinstance(template, str):
        return {"default": template}
    if template is None:
        return {}
    try:
        entries = template.items() if isinstance(template, dict) else [(e["name"], e["template"]) for e in template]
        if all(isinstance(text, str) for entry in entries for text in entry):
            return dict(entries)
    except (TypeError, KeyError):
        pass
    wrong = "chat_template must be a string, or a list of objects with name and template"
    raise ModelCardError(f"{directory / 'tokenizer_config.json'}: {wrong}; repair or remove it")


def token_text(token: Any) -> str | None:
    """A special token is a string or an object with `content`; None for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
