"""Calls of functions in an answer's text, told from its content while it arrives.

Pure: text in, `Said` out. Knows no tools but their names. Text that only looks like a call, or calls a function that
nobody offered, is content: nothing that a model writes is an error.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from semipd_engine.server.detokenizer import begins_at, split_at
from semipd_engine.server.json_text import BLANKS, ObjectReader
from semipd_engine.server.tools import ARGS, CALL_ID, HERMES, MISTRAL, PYTHON_TAG, ToolFormat

_B = f"[{BLANKS}]*"
_HEAD = re.compile(
    rf'\{{{_B}(?:"type"{_B}:{_B}"function"{_B},{_B})?"name"{_B}:{_B}"([^"\\]{{1,64}})"{_B},{_B}'
    rf'"(?:arguments|parameters)"{_B}:{_B}(?=\{{)'
)
"""A call whose name comes first. A name with escapes is nobody's, nor is a longer one (`tools.NAME`)."""
_BEGUN = re.compile(rf'\{{{_B}["}}]')
_LED = re.compile(rf"{_B}[\[,]?{_B}")
"""What may stand before a call in Mistral's list, the text after the marker or the last call."""
_NAMED = re.compile(
    rf"{_B}([\w.-]{{1,64}}){_B}(?:{re.escape(CALL_ID)}{_B}\w*{_B})?(?:{re.escape(ARGS)}{_B})?(?=\{{)", re.ASCII
)
"""Mistral's newer form of a call, up to its arguments ..."""
_NAMING = re.compile(r"[\s\w.\[\]-]{0,200}", re.ASCII)
"""... and what may become it."""


@dataclass
class CallDelta:
    """What is new of a call. The first one has id and name, and `arguments` of all of them make JSON text."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


@dataclass
class Said:
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


@dataclass(frozen=True)
class CallOptions:
    """Which calls may be found."""

    functions: frozenset[str] = frozenset()
    """Their names; empty: no calls."""
    format: ToolFormat = HERMES
    forced: bool = False
    """A grammar holds the answer: it is calls and nothing else, so that a part of one is no malformed call."""
    streamed: bool = False
    """Arguments are given out as they arrive; else a call is given out when it is whole."""
    most_calls: int = 0
    """0: any number."""
    short_ids: bool = False
    """Calls have ids of nine letters and digits (`Reach.short_ids`)."""


class _State(Enum):
    CONTENT = 0
    CALL = 1
    ARGUMENTS = 2
    CLOSING = 3
    PLAIN = 4


class CallReader:
    """Of one choice. `found`, how many there are, and `ended` hold for what was read so far."""

    def __init__(self, options: CallOptions) -> None:
        self._options = options
        self._format = options.format
        self._state = _State.CONTENT if options.functions else _State.PLAIN
        self._text = ""
        self._out = Said()
        self._told = False
        """Content came after the last call."""
        self._gap = ""
        """What came before a call's text, its marker and the blanks before that: content, if it is none."""
        self._listed = False
        """It is one of Mistral's list."""
        self._reader = ObjectReader()
        """Of the call that is being read ..."""
        self._looked = 0
        """... of whose text, while it is held, it has so much."""
        self._name = self._held = self._arguments = ""
        """Of a call whose arguments are being read: the text that they are a part of, if it is not given out yet ..."""
        self._around = 1
        """... and how many objects that are still open when they are whole."""
        self.found = 0

    @property
    def ended(self) -> bool:
        """There are as many calls as may be, and what follows is of no interest."""
        whole = self._state in (_State.CONTENT, _State.PLAIN)
        return bool(self._options.most_calls) and self.found >= self._options.most_calls and whole

    def read(self, text: str, final: bool) -> Said:
        """What became certain with this text; `final`: all of it."""
        self._text += text
        steps = {
            _State.CONTENT: self._content,
            _State.CALL: self._call,
            _State.ARGUMENTS: self._argue,
            _State.CLOSING: self._close,
            _State.PLAIN: self._plain,
        }
        while not self.ended and steps[self._state](final):
            pass
        out, self._out = self._out, Said()
        return out

    # ---- each returns whether there is more to do with the text at hand -------------------------------------------

    def _content(self, final: bool) -> bool:
        if not self._format.begin:
            return self._bare(final)
        before, self._gap, self._text, found = split_at(self._text, self._format.begin, final)
        if final and self._options.forced and not found:
            before = before[: begins_at(before, self._format.begin)]
        self._say(before)
        if found:
            self._gap += self._format.begin
            self._begin_call()
        return found

    def _begin_call(self) -> None:
        self._state, self._reader, self._looked, self._listed = _State.CALL, ObjectReader(), 0, False

    def _bare(self, final: bool) -> bool:
        """A call without a marker: the answer begins with it, or it follows another."""
        begun = self._text.lstrip()
        if self.found:
            begun = begun.removeprefix(";").lstrip()
        begun = begun.removeprefix(PYTHON_TAG).lstrip()
        if begun.startswith("{"):
            self._begin_call()
        elif final or not PYTHON_TAG.startswith(begun):
            self._state = _State.PLAIN
            if (self._options.forced or self.found) and not begun:
                self._text = ""  # what would part it from a call that does not come
        else:
            return False
        return True

    def _plain(self, final: bool) -> bool:
        if self._say(self._text):
            self._text = ""
        return False

    def _say(self, text: str) -> bool:
        """Content, but for blanks alone after a call."""
        blank = not text.strip()
        if blank and self.found and not self._told:
            return False
        self._told = self._told or not blank
        self._out.content += text
        return True

    def _call(self, final: bool) -> bool:
        """A call of which nothing is given out yet."""
        text = self._text
        at, named = self._start(text)
        head = _NAMED.match(text) if named else _HEAD.match(text, at)
        known = head is not None and head[1] in self._options.functions
        if head is not None and known and (self._options.forced or _BEGUN.match(text, head.end())):
            self._reader, self._around = ObjectReader(), 0 if named else 1
            if not named:
                self._reader.read(text[at : head.end()])
            self._name, self._held, self._arguments = head[1], text[: head.end()], ""
            self._text, self._state = text[head.end() :], _State.ARGUMENTS
            if self._options.streamed:
                self._tell(self._name, "")
            return True
        if named:
            begun = _NAMING.fullmatch(text) if head is None else known and not text[head.end() + 1 :].strip(BLANKS)
            if begun and not final:
                return False
            if begun and self._options.forced:  # it was cut before its arguments
                self._text, self._state = "", _State.CONTENT
                return False
            return self._give_up("")
        self._looked = end = self._reader.read(text, max(at, self._looked))
        if self._reader.done and (call := _parsed(text[at:end])) and call[0] in self._options.functions:
            self._tell(*call)
            self._text, self._state = text[end:], _State.CLOSING
            return True
        if not (self._reader.done or self._reader.wrong or final):
            return False
        self._text = text[end:]
        if self._options.forced and not self._reader.wrong:  # it was cut before its arguments
            self._state = _State.CONTENT
            return False
        return self._give_up(text[:end])

    def _start(self, text: str) -> tuple[int, bool]:
        """Where a call's JSON begins, or what cannot be its beginning; and whether its name stands without JSON."""
        if not self._format.begin:
            return text.index("{"), False
        if self._format.begin != MISTRAL.begin:
            return len(text) - len(text.lstrip()), False
        led = _LED.match(text)
        at = led.end() if led else 0
        self._listed = bool(text[:at].strip())
        return at, not self._listed and not text.startswith("{", at) and at < len(text)

    def _tell(self, name: str, arguments: str) -> None:
        """A call is certain."""
        self._out.calls.append(CallDelta(self.found, arguments, _new_id(self._options.short_ids), name))
        self.found += 1
        self._told = False

    def _give_up(self, text: str) -> bool:
        """It was no call: content, with its marker. What follows is read anew."""
        self._say(self._gap + text)
        self._state = _State.CONTENT if self._format.begin else _State.PLAIN
        return True

    def _argue(self, final: bool) -> bool:
        """Arguments: given out as they arrive, or together once they are whole."""
        streamed, before = self._options.streamed, self._text
        piece, self._text = self._reader.take(before, until=self._around)
        wrong, forced = self._reader.wrong, self._options.forced
        whole = self._reader.depth == 1 if self._around else self._reader.done
        if streamed:
            self._out.calls += [CallDelta(self.found - 1, piece)] if piece else []
        else:
            self._held += before[: len(before) - len(self._text)]
            self._arguments += piece
            if whole or (final and forced and not wrong):
                self._tell(self._name, self._arguments)
        if whole:
            self._state = _State.CLOSING
            return True
        if not (wrong or final):
            return False
        if not streamed and (wrong or not forced):
            return self._give_up(self._held)
        self._state = _State.CONTENT if self._format.begin else _State.PLAIN
        return True

    def _close(self, final: bool) -> bool:
        """What follows a call's arguments up to its end. A model may leave its marks out, or write a brace more."""
        if not (self._reader.done or self._reader.wrong):
            self._text = self._text[self._reader.read(self._text) :]
            if not (self._reader.done or self._reader.wrong):
                return False
        if self._listed:
            self._text = self._text.lstrip(BLANKS + "}")
            if self._text.startswith(",") and (not self._options.most_calls or self.found < self._options.most_calls):
                self._gap = ""
                self._begin_call()
                return True
            if not self._text and not final:
                return False
            self._text = self._text.removeprefix("]")
        elif self._format.end:
            rest = self._text.lstrip(BLANKS + "}")
            if rest.startswith(self._format.end):
                self._text = rest[len(self._format.end) :]
            elif self._format.end.startswith(rest):
                if not final:
                    return False
                self._text = ""
        self._state = _State.CONTENT
        return True


def _parsed(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call's JSON; None for what is none."""
    try:
        value = json.loads(text, strict=False)
        arguments: Any = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):  # JSON in JSON
            arguments = json.loads(arguments, strict=False, parse_constant=_refused)
        if not isinstance(value.get("name"), str) or not isinstance(arguments, dict | None):
            return None
        return value["name"], json.dumps(arguments or {}, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _new_id(short: bool) -> str:
    digits = uuid.uuid4().hex
    return digits[:9] if short else f"call_{digits[:24]}"
