"""What an answer's text says: reasoning, content and tool calls, told apart while it arrives.

Pure: text in, `Parsed` out. Knows no tokens and no response shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from semipd_engine.server.calls import CallOptions, CallReader, Said
from semipd_engine.server.detokenizer import split_at
from semipd_engine.server.tools import MARKS, THINK, THOUGHT

MARKERS = (*MARKS, THINK, THOUGHT)
"""Where a tokenizer has them as special tokens they are text all the same."""


@dataclass
class Parsed(Said):
    reasoning: str = ""


@dataclass(frozen=True)
class AnswerOptions(CallOptions):
    """What may be found in an answer."""

    reasoning: bool = False
    thinking: bool = False
    """It goes on with a message that has opened its reasoning and not closed it."""
    named: bool = False
    """It must be one call of one function. Such an answer ends with `stop`, as OpenAI's do, and others with calls with
    `tool_calls`."""
    markers: frozenset[int] = frozenset()
    """Special tokens that are shown nevertheless."""


class AnswerParser:
    """Of one choice. `calls`, how many there are, and `ended` hold for what was pushed so far."""

    def __init__(self, options: AnswerOptions, thinking: bool = False) -> None:
        """`thinking`: the prompt has opened the reasoning."""
        self._named = options.named
        self._thoughts = _ThoughtReader(options.reasoning, thinking)
        self._calls = CallReader(options)

    @property
    def calls(self) -> int:
        return self._calls.found

    @property
    def ended(self) -> bool:
        """There are as many calls as may be, and what follows is of no interest."""
        return self._calls.ended

    @property
    def finish_reason(self) -> str:
        """Of an answer that was not cut."""
        return "tool_calls" if self.calls and not self._named else "stop"

    def push(self, text: str) -> Parsed:
        """What became certain with this text."""
        return self._read(text, final=False)

    def flush(self) -> Parsed:
        """The end: the rest."""
        return self._read("", final=True)

    def _read(self, text: str, final: bool) -> Parsed:
        reasoning, rest = self._thoughts.read(text, final)
        said = self._calls.read(rest, final)
        return Parsed(said.content, said.calls, reasoning)


class _State(Enum):
    START = 0
    REASONING = 1
    AFTER = 2
    OVER = 3


class _ThoughtReader:
    """Reasoning comes first, between its marks, or up to the second where the prompt has written the first. The blanks
    inside of the marks and behind them are nobody's."""

    def __init__(self, reasons: bool, thinking: bool) -> None:
        self._state = _State.OVER if not reasons else _State.REASONING if thinking else _State.START
        self._text = ""
        self._blank = True
        """Nothing of the reasoning was given out."""

    def read(self, text: str, final: bool) -> tuple[str, str]:
        """Of the text so far what is certain: reasoning, and what follows it."""
        self._text, reasoning = self._text + text, ""
        if self._state is _State.START:
            begun = self._text.lstrip()
            if begun.startswith(THINK):
                self._text, self._state = begun[len(THINK) :], _State.REASONING
            elif THINK.startswith(begun) and not final:
                return "", ""
            else:
                self._state = _State.OVER
        if self._state is _State.REASONING:
            reasoning, _, self._text, found = split_at(self._text, THOUGHT, final)
            reasoning = reasoning.lstrip() if self._blank else reasoning
            self._blank = self._blank and not reasoning
            if not found:
                return reasoning, ""
            self._state = _State.AFTER
        if self._state is _State.AFTER:
            self._text = self._text.lstrip()
            self._state = _State.OVER if self._text else _State.AFTER
        rest, self._text = self._text, ""
        return reasoning, rest
