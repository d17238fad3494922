"""The model's tokenizer: text to ids and back, and what one id stands for. Knows no requests and no templates."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from semipd_engine.cards.fields import BROKEN, no_file, not_json, there
from semipd_engine.cards.model_card import SPECIAL_TOKENS, special_tokens, token_text
from semipd_engine.cards.tokenizer_class import SPECIAL, built_anew, is_built_anew

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


CHARACTERS_AT_ONCE = 8
"""For each token that a text may have: so much of it is tokenised before it is known whether it has more."""
SLACK_TOKENS = 64
"""Where a text is cut it may have more tokens than the whole has there."""


class TokenizerError(Exception):
    """tokenizer.json or tokenizer_config.json is missing or broken, or a text cannot be encoded."""


class TextTooLong(Exception):
    """The text has more tokens than it may have; found before it was tokenised to its end."""


class Tokenizer:
    """Thread-safe: `encode` may run in a thread while the event loop decodes."""

    def __init__(self, directory: Path) -> None:
        path, described = directory / "tokenizer.json", directory / "tokenizer_config.json"
        config, model_config = _read(described), _read(directory / "config.json")
        try:
            text = path.read_text(encoding="utf-8")
            source = json.loads(text)
            if is_built_anew(config, model_config, lambda: source):
                source, config = built_anew(source, config), SPECIAL | config
                text = json.dumps(source)
            self._tokenizer = RustTokenizer.from_str(text)
            decoder = json.dumps(source.get("decoder") or {})
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(no_file(path) or f"{path}: {error}; the API needs a fast tokenizer file") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        older_ids: dict[str, int] | None = None
        if "added_tokens_decoder" not in config:
            config = special_tokens(config, _read(directory / "special_tokens_map.json"))
            older_ids = _older_ids(directory / "added_tokens.json")
        try:
            config = config if older_ids is None else _listed(config, older_ids)
            self._tokenizer.add_tokens(_added_tokens(config, self._tokenizer.get_vocab()))
        except Exception as error:
            cause = f"{described}: {error!r}; its tokens cannot be added to the tokenizer"
            raise TokenizerError(cause) from error
        self._tokenizer.encode_special_tokens = config.get("split_special_tokens") is True
        self._byte_level = '"ByteLevel"' in decoder
        self._byte_fallback = '"ByteFallback"' in decoder
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = frozenset(added)
        self.byte_of = lru_cache(maxsize=None)(self._find_byte)
        """The byte that an id stands for, where it is a token of byte fallback; else None."""
        self._anchor = self._find_anchor()
        self._anchor_text = self.decode(self._anchor)

    def encode(self, text: str, add_special_tokens: bool = True, most: int = 0) -> list[int]:
        """Ids of `text`. Raises `TokenizerError` for text that is not valid Unicode.

        With `most`: raises `TextTooLong`, without tokenising it all, for a text that surely has more tokens than that.
        """
        characters = CHARACTERS_AT_ONCE * most
        while most and characters < len(text):
            if len(self._encode(text[:characters], add_special_tokens)) > most + SLACK_TOKENS:
                raise TextTooLong
            characters *= 4
        return self._encode(text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            # The batch call, unlike encode(), lets other threads run; without it a long prompt stops all streams.
            ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except Exception as error:
            raise TokenizerError(f"text cannot be tokenised: {error}") from error
        return ids

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def text(self, token_ids: list[int]) -> str:
        """What these ids add to a text that has begun: a blank that the first of them stands for stays."""
        return self.decode([*self._anchor, *token_ids])[len(self._anchor_text) :]

    @cached_property
    def affixes(self) -> tuple[int, int]:
        """How many special tokens it puts before a text, and how many behind it."""
        bare, whole = self.encode("a", False), self.encode("a")
        before = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0) if bare else len(whole)
        return before, max(0, len(whole) - before - len(bare))

    def id_of(self, token: str) -> int | None:
        """None for a token that the vocabulary does not have."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def special_id_of(self, token: str) -> int | None:
        """None for a token that is text, too."""
        found = self.id_of(token)
        return found if found in self._special else None

    def to_json(self) -> str:
        """The tokenizer as a file has it, with what tokenizer_config.json adds."""
        source: str = self._tokenizer.to_str()
        return source

    def decode_long(self, token_ids: list[int]) -> str:
        """Like `decode`, letting other Python threads run meanwhile."""
        text: str = self._tokenizer.decode_batch([token_ids], skip_special_tokens=False)[0]
        return text

    def keeps(self, token_id: int, skip_special_tokens: bool) -> bool:
        """Whether a full decode would show this id: unknown ids never, special ones unless skipped."""
        if skip_special_tokens and token_id in self._special:
            return False
        return self._tokenizer.id_to_token(token_id) is not None

    def piece(self, token_id: int) -> str:
        """The vocabulary's own spelling, for /tokenize; empty for an id without one."""
        return self._tokenizer.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that this id adds to a text; they may be a part of a character."""
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if token_id not in self._added:
            if self._byte_level and all(character in _BYTE_OF for character in piece):
                return bytes(_BYTE_OF[character] for character in piece)
            if (byte := self.byte_of(token_id)) is not None:
                return bytes([byte])
            if self._byte_fallback:
                return piece.replace("\u2581", " ").encode()
        return self.decode([token_id]).encode()

    def _find_anchor(self) -> list[int]:
        """A token to begin with where the decoder drops the blank that begins a text, which an answer is not; else
        none."""
        if self._byte_level:
            return []
        words = (
            (number, piece)
            for piece, number in self._tokenizer.get_vocab().items()
            if piece[:1] == "\u2581" and piece[1:].isalnum() and number not in self._added
        )
        number, _ = min(words, default=(-1, ""))
        if number < 0:
            return []
        once, twice = self.decode([number]), self.decode([number, number])
        return [number] if twice.startswith(once) and len(twice) > 2 * len(once) else []

    def _find_byte(self, token_id: int) -> int | None:
        match = _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or "") if self._byte_fallback else None
        return int(match[1], 16) if match else None


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds; an empty object where there is none. Raises `TokenizerError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if there(path) else {}
    except BROKEN as error:
        raise TokenizerError(not_json(path, error)) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: must hold a JSON object")
    return value


def _older_ids(path: Path) -> dict[str, int]:
    """added_tokens.json: token -> id. Raises `TokenizerError`."""
    ids = _read(path)
    for token, number in ids.items():
        if type(number) is not int:
            raise TokenizerError(f"{path}: {token!r} is {number!r}; expected an id; repair or remove it")
    return ids


def _listed(config: dict[str, Any], older_ids: dict[str, int]) -> dict[str, Any]:
    """tokenizer_config.json with the tokens of the older file."""
    named = {token_text(one) for one in _named(config)}
    tokens = {
        str(number): {"content": token, "special": token in named, "normalized": token not in named}
        for token, number in older_ids.items()
    }
    return config | {"added_tokens_decoder": tokens}


def _named(config: dict[str, Any]) -> list[Any]:
    """The special tokens: those with a usual name, those with a name of the model's own, those without any."""
    others = [config[name] for name in config if name.endswith("_token") and name not in SPECIAL_TOKENS]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return [
        *(config.get(name) for name in SPECIAL_TOKENS),
        *(token for token in others if token_text(token) is not None),
        *(extra.values() if isinstance(extra, dict) else extra),
    ]


def _added_tokens(config: dict[str, Any], known: Collection[str]) -> list[AddedToken]:
    """What tokenizer_config.json adds to tokenizer.json or sees otherwise, as transformers does: the ids follow the
    vocabulary's, those of tokens that are there stay. All named special tokens are special, but what both files list
    as none."""
    listed = {int(number): token for number, token in (config.get("added_tokens_decoder") or {}).items()}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")

    def added(token: Any, special: bool) -> AddedToken:
        if isinstance(token, str):
            return AddedToken(token, special=special)
        given = {flag: bool(token[flag]) for flag in flags if token.get(flag) is not None}
        return AddedToken(token["content"], **given | ({"special": True} if special else {}))

    tokens = {added(token, False).content: added(token, False) for _, token in sorted(listed.items())}
    for token in filter(None, _named(config)):
        one = added(token, True)
        if one.content not in tokens:
            tokens[one.content] = one
        elif one.content not in known:
            tokens[one.content].special = True
    return list(tokens.values())


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte: itself, or the next free one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
