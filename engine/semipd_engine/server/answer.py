"""What an answer's text says: reasoning, content and tool calls, told apart while it arrives.

Pure: text in, `Parsed` out. Knows no tokens, no tools but their names and no response shapes. Text that only looks like
a call, or calls a function that nobody offered, is content: nothing that a model writes is an error.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from semipd_engine.server.detokenizer import begins_at
from semipd_engine.server.json_text import BLANKS, ObjectReader
from semipd_engine.server.tools import HERMES, PYTHON_TAG, THINK, THOUGHT, ToolFormat

MARKERS = (HERMES.begin, HERMES.end, THINK, THOUGHT)
"""Where a tokenizer has them as special tokens they are text all the same."""

_B = f"[{BLANKS}]*"
_HEAD = re.compile(
    rf'\{{{_B}(?:"type"{_B}:{_B}"function"{_B},{_B})?"name"{_B}:{_B}"([^"\\]{{1,64}})"{_B},{_B}'
    rf'"(?:arguments|parameters)"{_B}:{_B}(?=\{{)'
)
"""A call whose name comes first. A name with escapes is nobody's, nor is a longer one (`tools.NAME`)."""
_BEGUN = re.compile(rf'\{{{_B}["}}]')


@dataclass
class CallDelta:
    """What is new of a call. The first one has id and name, and `arguments` of all of them make JSON text."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


@dataclass
class Parsed:
    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)


@dataclass(frozen=True)
class AnswerOptions:
    """What may be found in an answer."""

    functions: frozenset[str] = frozenset()
    """Their names; empty: no calls."""
    format: ToolFormat = HERMES
    reasoning: bool = False
    thinking: bool = False
    """It goes on with a message that has opened its reasoning and not closed it."""
    forced: bool = False
    """A grammar holds the answer: it is calls and nothing else, so that a part of one is no malformed call."""
    streamed: bool = False
    """Arguments are given out as they arrive; else a call is given out when it is whole."""
    most_calls: int = 0
    """0: any number."""
    named: bool = False
    """It must be one call of one function. Such an answer ends with `stop`, as OpenAI's do, and others with calls with
    `tool_calls`."""
    markers: frozenset[int] = frozenset()
    """Special tokens that are shown nevertheless."""


class _State(Enum):
    START = 0
    REASONING = 1
    CONTENT = 2
    CALL = 3
    ARGUMENTS = 4
    CLOSING = 5
    PLAIN = 6


class AnswerParser:
    """Of one choice. `calls`, how many there are, and `ended` hold for what was pushed so far."""

    def __init__(self, options: AnswerOptions, thinking: bool = False) -> None:
        """`thinking`: the prompt has opened the reasoning."""
        self._options = options
        self._format = options.format
        self._state = _State.START if options.reasoning else _State.CONTENT
        if options.reasoning and thinking:
            self._state = _State.REASONING
        self._text = ""
        self._out = Parsed()
        self._blank = True
        """Nothing of the reasoning was given out: blanks before it are dropped."""
        self._after_thought = False
        self._told = False
        """Content came after the last call."""
        self._gap = ""
        """The blanks before a call's marker, which are content if it is none."""
        self._reader = ObjectReader()
        """Of the call that is being read ..."""
        self._looked = 0
        """... of whose text, while it is held, it has so much."""
        self._name = self._held = self._arguments = ""
        """Of a call whose arguments are being read: the text that they are a part of, if it is not given out yet."""
        self.calls = 0

    @property
    def ended(self) -> bool:
        """There are as many calls as may be, and what follows is of no interest."""
        whole = self._state in (_State.CONTENT, _State.PLAIN)
        return bool(self._options.most_calls) and self.calls >= self._options.most_calls and whole

    @property
    def finish_reason(self) -> str:
        """Of an answer that was not cut."""
        return "tool_calls" if self.calls and not self._options.named else "stop"

    def push(self, text: str) -> Parsed:
        """What became certain with this text."""
        return self._read(text, final=False)

    def flush(self) -> Parsed:
        """The end: the rest."""
        return self._read("", final=True)

    def _read(self, text: str, final: bool) -> Parsed:
        self._text += text
        steps = {
            _State.START: self._start,
            _State.REASONING: self._reason,
            _State.CONTENT: self._content,
            _State.CALL: self._call,
            _State.ARGUMENTS: self._argue,
            _State.CLOSING: self._close,
            _State.PLAIN: self._plain,
        }
        while not self.ended and steps[self._state](final):
            pass
        out, self._out = self._out, Parsed()
        return out

    # ---- each returns whether there is more to do with the text at hand -------------------------------------------

    def _start(self, final: bool) -> bool:
        begun = self._text.lstrip()
        if begun.startswith(THINK):
            self._text, self._state = begun[len(THINK) :], _State.REASONING
        elif THINK.startswith(begun) and not final:
            return False
        else:
            self._state = _State.CONTENT
        return True

    def _reason(self, final: bool) -> bool:
        before, found = self._until(THOUGHT, final)
        if self._blank:
            before = before.lstrip()
        self._blank = self._blank and not before
        self._out.reasoning += before
        if found:
            self._state, self._blank, self._after_thought = _State.CONTENT, True, True
        return found

    def _content(self, final: bool) -> bool:
        if self._after_thought:
            self._text = self._text.lstrip()
            if not self._text:
                return False
            self._after_thought = False
        if not self._options.functions:
            self._state = _State.PLAIN
            return True
        if not self._format.begin:
            return self._bare(final)
        before, found = self._until(self._format.begin, final)
        if final and self._options.forced and not found:
            before = before[: begins_at(before, self._format.begin)]
        self._say(before)
        if found:
            self._state, self._reader, self._looked = _State.CALL, ObjectReader(), 0
        return found

    def _bare(self, final: bool) -> bool:
        """A call without a marker: the answer begins with it, or it follows another."""
        begun = self._text.lstrip()
        if self.calls:
            begun = begun.removeprefix(";").lstrip()
        begun = begun.removeprefix(PYTHON_TAG).lstrip()
        if begun.startswith("{"):
            self._state, self._reader, self._looked = _State.CALL, ObjectReader(), 0
        elif final or not PYTHON_TAG.startswith(begun):
            self._state = _State.PLAIN
            if (self._options.forced or self.calls) and not begun:
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
        if blank and self.calls and not self._told:
            return False
        self._told = self._told or not blank
        self._out.content += text
        return True

    def _call(self, final: bool) -> bool:
        """A call of which nothing is given out yet."""
        text = self._text
        at = text.index("{") if not self._format.begin else len(text) - len(text.lstrip())
        head = _HEAD.match(text, at)
        known = head is not None and head[1] in self._options.functions
        if head is not None and known and (self._options.forced or _BEGUN.match(text, head.end())):
            self._reader = ObjectReader()
            self._reader.read(text[at : head.end()])
            self._name, self._held, self._arguments = head[1], text[: head.end()], ""
            self._text, self._state = text[head.end() :], _State.ARGUMENTS
            if self._options.streamed:
                self._tell(self._name, "")
            return True
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

    def _tell(self, name: str, arguments: str) -> None:
        """A call is certain."""
        self._out.calls.append(CallDelta(self.calls, arguments, _new_id(), name))
        self.calls += 1
        self._told = False

    def _give_up(self, text: str) -> bool:
        """It was no call: content, with its marker. What follows is read anew."""
        self._say(self._gap + self._format.begin + text)
        self._state = _State.CONTENT if self._format.begin else _State.PLAIN
        return True

    def _argue(self, final: bool) -> bool:
        """Arguments: given out as they arrive, or together once they are whole."""
        streamed, before = self._options.streamed, self._text
        piece, self._text = self._reader.take(before, until=1)
        whole, wrong, forced = self._reader.depth == 1, self._reader.wrong, self._options.forced
        if streamed:
            self._out.calls += [CallDelta(self.calls - 1, piece)] if piece else []
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
        if self._format.end:
            rest = self._text.lstrip(BLANKS + "}")
            if rest.startswith(self._format.end):
                self._text = rest[len(self._format.end) :]
            elif self._format.end.startswith(rest):
                if not final:
                    return False
                self._text = ""
        self._state = _State.CONTENT
        return True

    def _until(self, marker: str, final: bool) -> tuple[str, bool]:
        """The text before `marker`, and whether it came: without the blanks before it, and so far only what cannot be a
        part of either."""
        at = self._text.find(marker)
        found = at >= 0
        before = self._text[:at] if found else self._text if final else self._text[: begins_at(self._text, marker)]
        if found or not final:
            before = before.rstrip()
        self._gap = self._text[len(before) : at] if found else ""
        self._text = self._text[at + len(marker) if found else len(before) :]
        return before, found


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


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
