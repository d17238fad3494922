"""The api's side of `grammar_trial`: a client's grammar is asked about, and awaited, without work in this process.

A grammar may take any time, stack and memory, and what it takes is a child's. Verdicts are kept: most grammars come
again. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipd_engine.server.errors import ApiError, bad_request, unavailable
from semipd_engine.server.grammar_trial import HEAD
from semipd_engine.server.structured import MAX_GRAMMAR_CHARACTERS, larger
from semipd_engine.server.tools import Tool, ToolFormat

KEPT_BYTES = 8 << 20
"""Of questions and their verdicts that are kept."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Question:
    number: int
    text: bytes
    answer: asyncio.Future[bytes]
    waiting: int = 0
    """How many wait for its answer."""


class GrammarJudge:
    """One per api; lives on the event loop."""

    def __init__(self, model: Path, vocab_size: int) -> None:
        self._command = ("-m", "semipd_engine.server.grammar_trial", str(os.getpid()), str(model), str(vocab_size))
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._asked: dict[int, _Question] = {}
        self._numbers: dict[bytes, int] = {}
        """Of what is asked, by its text."""
        self._number = 0
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._kept_bytes = 0

    async def grammar_of(self, fields: Mapping[str, Any]) -> str:
        """`structured.grammar_of`. Raises `ApiError` (400, 503)."""
        return await self._verdict(next(iter(fields)), fields, {"fields": fields})

    async def calls_grammar(self, tools: Sequence[Tool], only: str | None, form: ToolFormat, parallel: bool) -> str:
        """`tools.calls_grammar`. Raises `ApiError` (400, 503)."""
        functions = [{name: tool["function"].get(name) for name in ("name", "parameters")} for tool in tools]
        bare = [
            {"function": each} if only in (None, each["name"]) else {"function": {"name": each["name"]}}
            for each in functions
        ]
        question = {"tools": bare, "only": only, "format": form.name, "parallel": parallel}
        return await self._verdict("tools", {"tools": bare}, question)

    async def start(self) -> None:
        """The process that answers, if there is none. The vocabulary takes it a second; questions wait for that.
        Raises `ApiError` (503)."""
        async with self._starting:
            if self._process is not None:
                return
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
                )
            except OSError as error:
                log.error("no process for clients' grammars: %s", error)
                raise _lost() from None
            self._listening = asyncio.create_task(self._listen(self._process), name="grammars")

    async def end(self) -> None:
        """The process is gone afterwards."""
        process, listening = self._process, self._listening
        if process is not None and listening is not None:
            listening.cancel()
            with suppress(ProcessLookupError):  # it has ended by itself
                process.kill()
            await process.wait()

    async def _verdict(self, field: str, parts: Mapping[str, Any], question: dict[str, Any]) -> str:
        asked = await asyncio.to_thread(_text, parts, question)  # 100,000 values take a while to walk through
        answer = self._kept.get(asked)
        if answer is None:
            answer = await self._ask(asked)
        else:
            self._kept.move_to_end(asked)
        verdict = json.loads(answer)
        if "grammar" in verdict:
            return str(verdict["grammar"])
        if "busy" in verdict:
            raise unavailable(verdict["busy"], "grammar_timeout")
        if "died" in verdict:
            raise bad_request(field, f"cannot be used as a grammar: {verdict['died']}")
        raise ApiError(400, verdict["message"], param=verdict["param"] or None)

    async def _ask(self, text: bytes) -> bytes:
        """Who asks what is being asked waits for the same answer: a new schema comes with many requests at once. The
        last one who does not wait for it takes the question back."""
        await self.start()
        question = self._asked[self._numbers[text]] if text in self._numbers else self._put(text)
        question.waiting += 1
        try:
            return await asyncio.shield(question.answer)
        finally:
            question.waiting -= 1
            if not question.waiting and not question.answer.done():
                self._forget(question)
                self._write(question.number, b"")

    def _put(self, text: bytes) -> _Question:
        self._number += 1
        question = _Question(self._number, text, asyncio.get_running_loop().create_future())
        self._asked[question.number], self._numbers[text] = question, question.number
        self._write(question.number, text)
        return question

    def _forget(self, question: _Question) -> None:
        del self._asked[question.number], self._numbers[question.text]

    def _write(self, number: int, text: bytes) -> None:
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(HEAD.pack(number, len(text)) + text)  # else it has ended, and `_listen` tells who waits

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Hand out what it says, until it ends: the next question starts another."""
        assert process.stdout is not None
        try:
            while True:
                number, size = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
                verdict = await process.stdout.readexactly(size)
                if (question := self._asked.get(number)) is not None:
                    self._forget(question)
                    question.answer.set_result(verdict)
                    if not verdict.startswith(b'{"busy"'):
                        self._keep(question.text, verdict)
        except (asyncio.IncompleteReadError, OSError):  # cancelled, by `end`, it leaves the process to that
            self._process = None
        for question in list(self._asked.values()):
            self._forget(question)
            question.answer.set_exception(_lost())
        log.error("the judge of grammars ended with %d; the next grammar starts another", await process.wait())

    def _keep(self, asked: bytes, answer: bytes) -> None:
        if asked in self._kept:
            return
        self._kept[asked] = answer
        self._kept_bytes += len(asked) + len(answer)
        while self._kept_bytes > KEPT_BYTES:
            before, verdict = self._kept.popitem(last=False)
            self._kept_bytes -= len(before) + len(verdict)


def _lost() -> ApiError:
    return unavailable("the process that tries grammars was lost; try again", "not_ready")


def _text(parts: Mapping[str, Any], question: dict[str, Any]) -> bytes:
    """Of a question, once its parts are known not to be large. Raises `ApiError` (400)."""
    for name, value in parts.items():
        if characters(value) > MAX_GRAMMAR_CHARACTERS:
            raise larger(name)
    return json.dumps(question).encode()


def characters(value: Any) -> int:
    """About how many this JSON has, counted until there are more than a grammar may have."""
    count, open_values = 0, [value]
    while open_values and count <= MAX_GRAMMAR_CHARACTERS:
        each = open_values.pop()
        count += len(each) if isinstance(each, str) else 1
        if isinstance(each, dict):
            open_values += each.values()
            count += sum(map(len, each))
        elif isinstance(each, list):
            open_values += each
    return count
