"""Incremental detokenisation: token ids in, text that will never change out.

Knows the `tokenizers` library only through two functions (decode, and the byte that an id stands for, if it does);
knows nothing of requests or HTTP.

A token's text depends on its neighbours: a character may span tokens, and some decoders strip or join at borders. So a
window of tokens is decoded: ``tokens[:read]`` gives context, ``tokens[read:]`` is new, and what the new ones add to the
window's text is the delta. The window moves on only when its text ends on a character border. Tokens that stand for one
byte each (byte fallback) are decoded as UTF-8 here: in the library one bad byte spoils a whole run of them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from itertools import groupby

REPLACEMENT = "\ufffd"
MAX_UTF8_BYTES = 4
REBASE_AFTER = 32
"""Tokens of one window without a character border (only invalid UTF-8 does that) before the window is cut anyway."""

Decode = Callable[[list[int]], str]
ByteOf = Callable[[int], int | None]


class Detokenizer:
    """One sequence's decoder. Fed only with ids that the full decode would keep (no skipped special tokens).

    For every stream of tokens the deltas joined equal ``decode(all tokens)``.
    """

    def __init__(self, decode: Decode, byte_of: ByteOf) -> None:
        self._decode = decode
        self._byte_of = byte_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._tokens: list[int] = []
        self._read = 0  # tokens[:read] are context, whose text is `_context` characters long
        self._context = 0
        self._emitted = 0  # characters of the window's text that were given out; >= _context
        self.given = 0
        """Characters given out."""
        self._open = False
        """Does a character begin behind them that is not whole yet?"""

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens and return the text that became certain."""
        delta = ""
        for are_bytes, group in groupby(token_ids, lambda token_id: self._byte_of(token_id) is not None):
            push = self._push_bytes if are_bytes else self._push_text
            delta += push(list(group))
        self.given += len(delta)
        return delta

    def push_one(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """Like `push`, for one token or none, and the offset in all that is given out at which it begins. The pieces of
        a character share its offset."""
        before, was_open = self.given, self._open
        delta = self.push(token_ids)
        broken = was_open and delta.startswith(REPLACEMENT)  # what was not whole never will be: the token begins anew
        return delta, before + broken

    def flush(self) -> str:
        """End of the sequence: the rest, with U+FFFD where a character stayed incomplete."""
        delta = self._utf8.decode(b"", final=True) + self._rest()
        self.given += len(delta)
        return delta

    def _push_bytes(self, token_ids: list[int]) -> str:
        delta = self._rest()
        self._set_context([])
        for token_id in token_ids:
            byte = self._byte_of(token_id)
            assert byte is not None
            delta += self._utf8.decode(bytes((byte,)))
            self._open = bool(self._utf8.getstate()[0])
        return delta

    def _push_text(self, token_ids: list[int]) -> str:
        broken = self._utf8.decode(b"", final=True)
        self._tokens += token_ids
        text = self._decode(self._tokens)
        # Only the last U+FFFD can still become part of a character: a tail of at most three bytes decodes to one.
        self._open = text.endswith(REPLACEMENT)
        stable = text[:-1] if self._open else text
        delta = stable[self._emitted :]
        self._emitted = max(self._emitted, len(stable))
        if not self._open and len(text) > self._context:
            self._set_context(self._tokens[self._read :])
        elif self._open and len(self._tokens) - self._read > REBASE_AFTER:
            self._rebase(text)
        return broken + delta

    def _rest(self) -> str:
        """What the window still holds back."""
        delta = self._decode(self._tokens)[self._emitted :] if len(self._tokens) > self._read else ""
        self._emitted += len(delta)
        return delta

    def _set_context(self, tokens: list[int]) -> None:
        """All text is certain, and these tokens end it: they are the context of what follows."""
        self._tokens = list(tokens)
        self._read = len(self._tokens)
        self._context = self._emitted = len(self._decode(self._tokens)) if self._tokens else 0

    def _rebase(self, text: str) -> None:
        """Cut the window at a token where decoding both sides apart gives the same text; keep the possible tail."""
        held = len(text) - self._emitted
        for cut in range(len(self._tokens) - MAX_UTF8_BYTES, self._read, -1):
            tail = self._decode(self._tokens[cut:])
            if self._decode(self._tokens[:cut]) + tail == text:
                self._tokens = self._tokens[cut:]
                self._read = self._context = 0
                self._emitted = len(tail) - held
                return


class StopStrings:
    """Finds stop strings in a growing text. Holds back only an end of it with which one may begin."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._include = include
        self._held = ""
        self.matched: str | None = None

    @property
    def holds(self) -> bool:
        """Is a text held back?"""
        return bool(self._held)

    def push(self, text: str, *, check: bool = True) -> str:
        """Add text, return what may be shown. After a match `matched` is set and nothing more may be pushed.

        With ``check=False`` (fewer than min_tokens so far) the text passes: a stop string cannot start in it.
        """
        if not self._stops:
            return text
        buffer = self._held + text
        if not check:
            self._held = ""
            return buffer
        new = len(self._held)  # what is held has none in it: a long one may hold back much, and each is looked for
        found = [
            (position, stop)
            for stop in self._stops
            if (position := buffer.find(stop, max(0, new - len(stop) + 1))) >= 0
        ]
        if found:
            # The match that ends first is the one that a token-by-token reader would have seen.
            position, stop = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            self.matched, self._held = stop, ""
            return buffer[: position + len(stop)] if self._include else buffer[:position]
        shown = min(begins_at(buffer, stop) for stop in self._stops)
        self._held = buffer[shown:]
        return buffer[:shown]

    def flush(self) -> str:
        """End without a match: what was held back."""
        held, self._held = self._held, ""
        return held


def begins_at(text: str, stop: str) -> int:
    """Where the longest end of `text` starts with which `stop` begins; its length without one."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0 and not stop.startswith(text[start:]):
        start += 1
    return start if start >= 0 else len(text)


def split_at(text: str, marker: str, final: bool) -> tuple[str, str, str, bool]:
    """The text before `marker`, the blanks between, what is left, and whether the marker came. Where it did not, `text`
    is given out up to what may still be a part of it or of the blanks; all of it where it is `final`."""
    at = text.find(marker)
    found = at >= 0
    before = text[:at] if found else text if final else text[: begins_at(text, marker)]
    if found or not final:
        before = before.rstrip()
    gap = text[len(before) : at] if found else ""
    return before, gap, text[at + len(marker) if found else len(before) :], found
