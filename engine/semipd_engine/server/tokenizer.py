"""The model's tokenizer: text to ids and back, and what one id stands for. Knows no requests and no templates."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from semipd_engine.server.detokenizer import Detokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenizerError(Exception):
    """tokenizer.json is missing or broken, or a text cannot be encoded."""


class Tokenizer:
    """Thread-safe: `encode` may run in a thread while the event loop decodes."""

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        try:
            source = path.read_text(encoding="utf-8")
            self._tokenizer = RustTokenizer.from_str(source)
            decoder = json.dumps(json.loads(source).get("decoder") or {})
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{path}: {error}; the API needs a fast tokenizer file") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._byte_level = '"ByteLevel"' in decoder
        self._byte_fallback = '"ByteFallback"' in decoder
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = frozenset(added)
        self._is_byte = lru_cache(maxsize=None)(self._find_byte)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`. Raises `TokenizerError` for text that is not valid Unicode."""
        try:
            # The batch call, unlike encode(), lets other threads run; without it a long prompt stops all streams.
            ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except Exception as error:
            raise TokenizerError(f"text cannot be tokenised: {error}") from error
        return ids

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def decode_long(self, token_ids: list[int]) -> str:
        """Like `decode`, letting other Python threads run meanwhile."""
        text: str = self._tokenizer.decode_batch([token_ids], skip_special_tokens=False)[0]
        return text

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self.decode, self._is_byte)

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
            if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
                return bytes([int(match[1], 16)])
            if self._byte_fallback:
                return piece.replace("\u2581", " ").encode()
        return self.decode([token_id]).encode()

    def _find_byte(self, token_id: int) -> bool:
        return self._byte_fallback and bool(_BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or ""))


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte: itself, or the next free one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
