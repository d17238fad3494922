"""JSON text: values written compactly, and one object read while it arrives.

Pure. A reader finds where the object closes, or the first character with which it is no JSON any more, however the text
is cut. Raw control characters in strings are taken: models write them, and `take` escapes them.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

MAX_DEPTH = 128
"""Objects and lists inside each other; deeper ones are no JSON here."""
BLANKS = " \t\n\r"

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_CLOSER = {"{": "}", "[": "]"}
_WORDS = {"t": "rue", "f": "alse", "n": "ull"}
_HEX = frozenset("0123456789abcdefABCDEF")
_NUMBER = {
    "minus": {"0": "zero", "1-9": "whole"},
    "zero": {".": "point", "e": "e"},
    "whole": {"0": "whole", "1-9": "whole", ".": "point", "e": "e"},
    "point": {"0": "fraction", "1-9": "fraction"},
    "fraction": {"0": "fraction", "1-9": "fraction", "e": "e"},
    "e": {"sign": "sign", "0": "exponent", "1-9": "exponent"},
    "sign": {"0": "exponent", "1-9": "exponent"},
    "exponent": {"0": "exponent", "1-9": "exponent"},
}
"""From what was read of a number and the next character's kind to what is read then."""
_WHOLE_NUMBERS = ("zero", "whole", "fraction", "exponent")


_encode = msgspec.json.Encoder().encode


def dump(value: Any) -> bytes:
    """Compact JSON. ASCII escapes only where UTF-8 cannot say it: lone surrogates. NaN and infinity become null."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, default=_raw).encode()


def written(value: Any) -> msgspec.Raw:
    """A part of a value to `dump`, encoded already: large ones in one go hold all threads up."""
    return msgspec.Raw(dump(value))


def _raw(value: msgspec.Raw) -> Any:
    return json.loads(bytes(value))


class ObjectReader:
    """`depth`: how many objects and lists are open. `wrong`: what came last cannot stand there."""

    def __init__(self) -> None:
        self.wrong = False
        self._open = ""
        """What closes them, the innermost last."""
        self._expected = "begin"
        self._is_key = False
        self._rest = ""
        self._controls: list[int] = []

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def done(self) -> bool:
        return self._expected == "nothing"

    def read(self, text: str, start: int = 0, until: int = 0) -> int:
        """Go on with `text` from `start`, and return where it stopped: behind what leaves `until` of them open, at the
        character that is wrong, or at the end."""
        self._controls = []
        at = start
        while at < len(text):
            if self._expected == "string" and (end := _PLAIN.match(text, at).end()) > at:  # type: ignore[union-attr]
                at = end
                continue
            character, depth = text[at], self.depth
            if self._expected == "string" and character < " ":
                self._controls.append(at)
            elif not self._take(character):
                self.wrong = True
                return at
            at += 1
            if self.depth == until < depth:
                break
        return at

    def take(self, text: str, until: int = 0) -> tuple[str, str]:
        """`read`, with what was read as JSON text, and the rest."""
        end = self.read(text, 0, until)
        parts, begun = list[str](), 0
        for at in self._controls:
            parts += text[begun:at], json.dumps(text[at])[1:-1]
            begun = at + 1
        return "".join([*parts, text[begun:end]]), text[end:]

    def _take(self, character: str) -> bool:
        """Whether it may stand here."""
        expected = self._expected
        if expected == "string":
            if character == '"':
                self._expected = "colon" if self._is_key else "next"
            elif character == "\\":
                self._expected = "escape"
            return True
        if expected == "escape":
            self._expected, self._rest = ("hex", "four") if character == "u" else ("string", "")
            return character in '"\\/bfnrtu'
        if expected == "hex":
            self._rest = self._rest[1:]
            self._expected = "hex" if self._rest else "string"
            return character in _HEX
        if expected == "word":
            fits, self._rest = character == self._rest[0], self._rest[1:]
            self._expected = "word" if self._rest else "next"
            return fits
        if expected in _NUMBER:
            then = _NUMBER[expected].get(_kind(character))
            if then is not None:
                self._expected = then
                return True
            if expected not in _WHOLE_NUMBERS:
                return False
            expected = self._expected = "next"
        return (character in BLANKS and expected != "begin") or self._between(character)

    def _between(self, character: str) -> bool:
        """Of what stands between blanks."""
        expected = self._expected
        if expected == "begin":
            return character == "{" and self._value(character)
        if expected == "next" and character == ",":
            self._expected = "key" if self._open[-1] == "}" else "value"
            return True
        if expected == "colon":
            self._expected = "value"
            return character == ":"
        if expected in ("next", "first key", "first value") and character == self._open[-1]:
            self._open = self._open[:-1]
            self._expected = "next" if self._open else "nothing"
            return True
        if expected in ("key", "first key"):
            self._expected, self._is_key = "string", True
            return character == '"'
        return expected in ("value", "first value") and self._value(character)

    def _value(self, character: str) -> bool:
        """Its first character."""
        if character in _CLOSER:
            self._open += _CLOSER[character]
            self._expected = "first key" if character == "{" else "first value"
            return self.depth <= MAX_DEPTH
        if character == '"':
            self._expected, self._is_key = "string", False
        elif character in _WORDS:
            self._expected, self._rest = "word", _WORDS[character]
        elif _kind(character) in ("0", "1-9"):
            self._expected = "zero" if character == "0" else "whole"
        else:
            self._expected = "minus"
            return character == "-"
        return True


def _kind(character: str) -> str:
    """Of a character in a number."""
    if character in "123456789":
        return "1-9"
    if character in "+-":
        return "sign"
    return "e" if character in "eE" else character
