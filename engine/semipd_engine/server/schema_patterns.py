r"""A JSON schema's `pattern` in llguidance's regular expressions: what ECMA-262 and Python both take for a match.

`\d`, `\w` and `\s` mean other characters in each of them, and a class within a class is none in a schema. llguidance
lets quotes and backslashes through a class that leaves them out but has all control characters: so none has NUL. Pure.
"""

from __future__ import annotations

import re

SPACES = r" \t-\r\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
IN = {
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": SPACES,
    "D": r"[^\p{Nd}]",
    "W": r"[^\p{L}\p{N}_]",
    "S": r"[^\s\x1c-\x1f\u{feff}]",
}
"""Of a class, what all agree that these stand for ..."""
OUT = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{N}_",
    "s": r"\s\x1c-\x1f\u{feff}",
    "D": "[^0-9]",
    "W": "[^0-9A-Za-z_]",
    "S": f"[^{SPACES}]",
}
"""... and what somebody takes them for, which a negated class leaves out."""
_ESCAPE = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]+\}|[pP]\{[^}]*\}|.)", re.DOTALL)
_QUANTIFIER = re.compile(r"\{\d*,?\d*\}")
_GROUP = re.compile(r"\(\?(?:[is]+[:)]|[:=!]|<[=!]|P?<[A-Za-z_]\w*>)")
_NUL = ("\\x00", "\\u0000", "\\0", "\0")
SPECIAL, IN_CLASSES = frozenset(r"\.+*?()|[]{}^$"), frozenset(r"\[]^&~-")


def pattern(text: str) -> str:
    """Raises ValueError for one that is read in different ways."""
    found, at = "", 0
    while at < len(text):
        if text[at] == "[":
            each, at = _class(text, at + 1)
        else:
            each, at = _outside(text, at)
        found += each
    return found


def _outside(text: str, at: int) -> tuple[str, int]:
    """What stands there, which is in no class, and where it ends."""
    one = text[at]
    if one == "\\":
        escape = _escape(text, at)
        name = escape[1:]
        if escape in _NUL:
            raise ValueError("pattern: no answer has the character NUL; leave it out")
        return f"[{_without_nul(IN[name], '')}]" if name in IN else _plain(escape), at + len(escape)
    if one == "\0":
        raise ValueError("pattern: no answer has the character NUL; leave it out")
    if one == "{" and not _QUANTIFIER.match(text, at):
        return r"\{", at + 1
    if text.startswith("(?", at) and not _GROUP.match(text, at):
        raise ValueError(f"pattern: what {text[at : at + 4]!r} means is not the same everywhere; leave it out")
    return one, at + 1


def _class(text: str, at: int) -> tuple[str, int]:
    """Behind its bracket."""
    negated = text.startswith("^", at)
    at += negated
    found, first = "", True
    while first or not text.startswith("]", at):
        start, at = _member(text, at, negated)
        if text.startswith("-", at) and not text.startswith("-]", at):
            end, behind = _member(text, at + 1, negated)
            if _is_set(start) or _is_set(end):
                found += start + r"\-" + end
            else:
                found += f"{start}-{end}"
            at = behind
        else:
            found += start
        first = False
    return f"[{_without_nul(found, '^' if negated else '')}]", at + 1


def _without_nul(members: str, negation: str) -> str:
    if negation:
        return rf"^{members}\x00"
    return rf"{members}&&[^\x00]" if re.search(r"\\[xuP]|\[\^|[\x00-\x1f]", members) else members


def _member(text: str, at: int, negated: bool) -> tuple[str, int]:
    if at >= len(text):
        raise ValueError("pattern: a '[' is not closed")
    if text[at] != "\\":
        return literal(text[at], IN_CLASSES), at + 1
    escape = _escape(text, at)
    name = escape[1:]
    if name in IN:
        return (OUT if negated else IN)[name], at + len(escape)
    return {"b": r"\x08", "0": r"\x00"}.get(name, _plain(escape, IN_CLASSES)), at + len(escape)


def _is_set(member: str) -> bool:
    return member in IN.values() or member in OUT.values() or member[:2] in (r"\p", r"\P")


def _escape(text: str, at: int) -> str:
    if (found := _ESCAPE.match(text, at)) is None:
        raise ValueError("pattern: nothing follows a backslash at its end")
    return found[0]


def _plain(escape: str, special: frozenset[str] = SPECIAL) -> str:
    """An escaped character that needs no escape stands for itself."""
    name = escape[1:]
    return escape if len(name) > 1 or (name.isascii() and name.isalnum()) else literal(name, special)


def literal(character: str, special: frozenset[str] = SPECIAL) -> str:
    """It stands for itself then."""
    return f"\\{character}" if character in special else character
