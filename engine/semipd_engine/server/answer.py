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

from pydantic_core import from_json

from semipd_engine.server.detokenizer import begins_at
from semipd_engine.server.tools import HERMES, PYTHON_TAG, THINK, THOUGHT, ToolFormat

MARKERS = (HERMES.begin, HERMES.end, THINK, THOUGHT)
"""Where a tokenizer has them as special tokens they are text all the same."""

_HEAD = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]*)"\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""A call whose name comes first. A name with escapes is nobody's."""
_BEGUN = re.compile(r'\{\s*["}]')
_JSON = json.JSONDecoder()
_LONGEST_TAIL = 256
"""Characters after a call's arguments within which its end must come."""


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
    """Of one choice. `called` and `ended` hold for what was pushed so far."""

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
        self._tried = 0
        """So much of a call that is held was looked at."""
        self._arguments = ""
        self._depth, self._quoted, self._escaped = 0, False, False
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
        self._out.content += before
        if found:
            self._state, self._tried = _State.CALL, 0
        return found

    def _bare(self, final: bool) -> bool:
        """A call without a marker: the answer begins with it, or it follows another."""
        begun = self._text.lstrip()
        if self.calls:
            begun = begun.removeprefix(";").lstrip()
        begun = begun.removeprefix(PYTHON_TAG).lstrip()
        if begun.startswith("{"):
            self._state, self._tried = _State.CALL, 0
        elif final or not PYTHON_TAG.startswith(begun):
            self._state = _State.PLAIN
        else:
            return False
        return True

    def _plain(self, final: bool) -> bool:
        self._out.content += "" if self.calls and not self._text.strip() else self._text
        self._text = ""
        return False

    def _call(self, final: bool) -> bool:
        """A call whose arguments are not given out yet."""
        text, at = self._text, 0
        if not self._format.begin:
            at = text.index("{")
        head = _HEAD.match(text, at)
        name = head[1] if head is not None else ""
        begun = head is not None and (self._options.forced or _BEGUN.match(text, head.end()))
        if head is not None and begun and self._options.streamed and name in self._options.functions:
            self._out.calls.append(CallDelta(self.calls, id=_new_id(), name=name))
            self.calls += 1
            self._text, self._state, self._arguments = text[head.end() :], _State.ARGUMENTS, ""
            self._depth, self._quoted, self._escaped = 0, False, False
            return True
        end = self._end_of_call(at, final)
        if end is None:
            return False
        call = self._parsed(text[at:end])
        if call is None and final and self._options.forced and head is not None:
            call = name, text[head.end() :]  # the answer was cut
        if call is None or call[0] not in self._options.functions:
            return self._give_up(end)
        self._out.calls.append(CallDelta(self.calls, call[1], _new_id(), call[0]))
        self.calls += 1
        self._text, self._state = text[end:], _State.CONTENT
        if self._format.end:
            self._text = self._text.lstrip().removeprefix(self._format.end)
        return True

    def _end_of_call(self, at: int, final: bool) -> int | None:
        """Where a held call ends, for good or bad; None: nobody knows yet."""
        text, mark = self._text, self._format.end or "}"
        found = text.find(mark, max(self._tried, at))
        while found >= 0:
            end = found if self._format.end else found + 1
            try:
                _JSON.decode(text[at:end])
                return end
            except ValueError as error:
                inside = "Unterminated string" in str(error)  # the mark may be a part of it
                if self._format.end and not inside:
                    return end
            except RecursionError:
                return end
            found = text.find(mark, found + 1)
        self._tried = max(0, len(text) - len(mark) + 1)
        if not final:
            return None
        try:  # a model may leave the last mark out
            return at + _JSON.raw_decode(text[at:].lstrip())[1] + len(text[at:]) - len(text[at:].lstrip())
        except (ValueError, RecursionError):
            return len(text)

    def _parsed(self, text: str) -> tuple[str, str] | None:
        """Name and arguments of a call's JSON; None for what is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments: Any = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):  # JSON in JSON
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        if (head := _HEAD.match(text)) is not None:  # as the model has written them
            return value["name"], text[head.end() : head.end() + _JSON.raw_decode(text[head.end() :])[1]]
        return value["name"], json.dumps(arguments, ensure_ascii=False)

    def _give_up(self, end: int) -> bool:
        """It was no call: content, with its markers."""
        end += len(self._format.end) if self._text.startswith(self._format.end, end) else 0
        self._out.content += self._format.begin + self._text[:end]
        self._text = self._text[end:]
        self._state = _State.CONTENT if self._format.begin else _State.PLAIN
        return True

    def _argue(self, final: bool) -> bool:
        """Arguments that are given out as they arrive."""
        end = self._value_ends()
        piece = self._text if end is None else self._text[:end]
        if not self._options.forced and not _begins_json(self._arguments + piece):
            self._state = _State.CONTENT if self._format.begin else _State.PLAIN
            return True
        self._arguments += piece
        if piece:
            self._out.calls.append(CallDelta(self.calls - 1, piece))
        self._text = self._text[len(piece) :]
        if end is not None:
            self._state = _State.CLOSING
        return end is not None

    def _value_ends(self) -> int | None:
        """Where the object that is being read closes, in the text at hand."""
        for position, character in enumerate(self._text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return position + 1
        return None

    def _close(self, final: bool) -> bool:
        """Between the arguments and what follows the call."""
        mark = self._format.end or "}"
        at = self._text.find(mark)
        if at < 0 and not final and len(self._text) < _LONGEST_TAIL:
            return False
        self._text = self._text[at + len(mark) :] if at >= 0 else self._text.removeprefix("}")
        self._state = _State.CONTENT
        return True

    def _until(self, marker: str, final: bool) -> tuple[str, bool]:
        """The text before `marker`, and whether it came: without the blanks before it, and so far only what cannot be a
        part of either."""
        at = self._text.find(marker)
        if at >= 0:
            before, self._text = self._text[:at].rstrip(), self._text[at + len(marker) :]
            return before, True
        if final:
            before, self._text = self._text, ""
            return ("" if self.calls and not before.strip() else before), False
        at = len(self._text[: begins_at(self._text, marker)].rstrip())
        before, self._text = self._text[:at], self._text[at:]
        return before, False


def _begins_json(text: str) -> bool:
    """Can this be the beginning of JSON, or all of it?"""
    try:
        from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return False
    return True


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
