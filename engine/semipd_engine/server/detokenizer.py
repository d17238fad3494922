"""Incremental detokenisation: token ids in, text that will never change out.

Knows the `tokenizers` library only through two functions (decode, and whether an id is part of a run of byte tokens);
knows nothing of requests or HTTP.

A token's text depends on its neighbours: a character may span tokens, and some decoders strip or join at borders. So a
window of tokens is decoded: ``tokens[:read]`` gives context, ``tokens[read:]`` is new, and what the new ones add to the
window's text is the delta. The window moves on only when its text ends on a character border.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
MAX_UTF8_BYTES = 4
REBASE_AFTER = 32
"""Tokens of one window without a character border (only invalid UTF-8 does that) before the window is cut anyway."""

Decode = Callable[[list[int]], str]
IsByte = Callable[[int], bool]


class Detokenizer:
    """One sequence's decoder. Fed only with ids that the full decode would keep (no skipped special tokens).

    For every stream of tokens the deltas joined equal ``decode(all tokens)``.
    """

    def __init__(self, decode: Decode, is_byte: IsByte) -> None:
        self._decode = decode
        self._is_byte = is_byte
        self._tokens: list[int] = []
        self._read = 0  # tokens[:read] are context, whose text is `_context` characters long
        self._context = 0
        self._emitted = 0  # characters of the window's text that were given out; >= _context

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens and return the text that became certain."""
        self._tokens += token_ids
        # A run of byte tokens is decoded as a whole (one bad byte spoils it all), so it is certain only at its end.
        if not self._tokens or self._is_byte(self._tokens[-1]):
            return ""
        text = self._decode(self._tokens)
        # Only the last U+FFFD can still become part of a character: a tail of at most three bytes decodes to one.
        incomplete = text.endswith(REPLACEMENT)
        stable = text[:-1] if incomplete else text
        delta = stable[self._emitted :]
        self._emitted = max(self._emitted, len(stable))
        if not incomplete and len(text) > self._context:
            self._advance()
        elif incomplete and len(self._tokens) - self._read > REBASE_AFTER:
            self._rebase(text)
        return delta

    def flush(self) -> str:
        """End of the sequence: the rest, with U+FFFD where a character stayed incomplete."""
        delta = self._decode(self._tokens)[self._emitted :]
        self._emitted += len(delta)
        return delta

    def _advance(self) -> None:
        """All text is certain: what was new becomes the context of what follows."""
        self._tokens = self._tokens[self._read :]
        self._read = len(self._tokens)
        self._context = self._emitted = len(self._decode(self._tokens))

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
    """Finds stop strings in a growing text. Holds back the characters that could be the start of one."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._include = include
        self._held = ""
        self.matched: str | None = None

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
        found = [(position, stop) for stop in self._stops if (position := buffer.find(stop)) >= 0]
        if found:
            # The match that ends first is the one that a token-by-token reader would have seen.
            position, stop = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            self.matched, self._held = stop, ""
            return buffer[: position + len(stop)] if self._include else buffer[:position]
        keep = min(self._hold, len(buffer))
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def flush(self) -> str:
        """End without a match: what was held back."""
        held, self._held = self._held, ""
        return held
