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
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipd_engine.server.errors import ApiError, bad_request, queue_full, unavailable
from semipd_engine.server.grammar_trial import QUESTION, VERDICT
from semipd_engine.server.structured import MAX_GRAMMAR_CHARACTERS, larger
from semipd_engine.server.tools import Tool, ToolFormat

MOST_ASKED = 64
"""Questions of one client that have no answer yet: some seconds' work, were they of the usual kind."""
KEPT_BYTES = 8 << 20
"""Of questions and their verdicts that are kept."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Question:
    number: int
    client: int
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
        self._numbers: dict[tuple[int, bytes], int] = {}
        """Of what is asked, by who asks it and its text."""
        self._asking: Counter[int] = Counter()
        """How much of it each client asks."""
        self._number = 0
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._kept_bytes = 0

    async def grammar_of(self, fields: Mapping[str, Any], client: str = "") -> str:
        """`structured.grammar_of`, for a client: one's grammars wait for its own. Raises `ApiError` (400, 429, 503)."""
        return await self._verdict(client, next(iter(fields)), fields, {"fields": fields})

    async def calls_grammar(
        self,
        tools: Sequence[Tool],
        only: str | None,
        form: ToolFormat,
        parallel: bool,
        marks: Mapping[str, int] | None = None,
        client: str = "",
    ) -> str:
        """`tools.calls_grammar`. Raises `ApiError` (400, 429, 503)."""
        functions = [{name: tool["function"].get(name) for name in ("name", "parameters")} for tool in tools]
        bare = [
            {"function": each} if only in (None, each["name"]) else {"function": {"name": each["name"]}}
            for each in functions
        ]
        question = {"tools": bare, "only": only, "format": form.name, "parallel": parallel, "marks": marks}
        return await self._verdict(client, "tools", {"tools": bare}, question)

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

    async def _verdict(self, client: str, field: str, parts: Mapping[str, Any], question: dict[str, Any]) -> str:
        asked = await asyncio.to_thread(_text, parts, question)  # 100,000 values take a while to walk through
        answer = self._kept.get(asked)
        if answer is None:
            answer = await self._ask(asked, hash(client) & (1 << 64) - 1)
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

    async def _ask(self, text: bytes, client: int) -> bytes:
        """A client that asks what it is asking waits for the same answer: a new schema comes with many requests at
        once. The last one who does not wait for it takes the question back."""
        await self.start()
        asked = self._numbers.get((client, text))
        question = self._put(text, client) if asked is None else self._asked[asked]
        question.waiting += 1
        try:
            return await asyncio.shield(question.answer)
        finally:
            question.waiting -= 1
            if not question.waiting and not question.answer.done():
                self._take_back(question)

    def _put(self, text: bytes, client: int) -> _Question:
        """Raises `ApiError` (429)."""
        if self._asking[client] >= MOST_ASKED:
            raise queue_full(f"{MOST_ASKED} grammars of this client are being tried, the limit; try again")
        self._number += 1
        question = _Question(self._number, client, text, asyncio.get_running_loop().create_future())
        self._asked[question.number], self._numbers[client, text] = question, question.number
        self._asking[client] += 1
        self._write(question, text)
        return question

    def _take_back(self, question: _Question) -> None:
        self._forget(question)
        self._write(question, b"")

    def _forget(self, question: _Question) -> None:
        del self._asked[question.number], self._numbers[question.client, question.text]
        self._asking[question.client] -= 1
        if not self._asking[question.client]:
            del self._asking[question.client]

    def _write(self, question: _Question, text: bytes) -> None:
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            # else it has ended, and `_listen` tells who waits
            process.stdin.write(QUESTION.pack(question.number, question.client, len(text)) + text)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Hand out what it says, until it ends: the next question starts another."""
        assert process.stdout is not None
        try:
            while True:
                number, size = VERDICT.unpack(await process.stdout.readexactly(VERDICT.size))
                verdict = await process.stdout.readexactly(size)
                if (question := self._asked.get(number)) is not None:
                    self._answer(question, verdict)
        except (asyncio.IncompleteReadError, OSError):  # cancelled, by `end`, it leaves the process to that
            self._process = None
        for question in list(self._asked.values()):
            self._forget(question)
            question.answer.set_exception(_lost())
        log.error("the judge of grammars ended with %d; the next grammar starts another", await process.wait())

    def _answer(self, question: _Question, verdict: bytes) -> None:
        """What is known of a grammar is told to others who ask for the same, too."""
        self._forget(question)
        question.answer.set_result(verdict)
        if verdict.startswith(b'{"busy"'):
            return
        self._keep(question.text, verdict)
        for same in [each for each in self._asked.values() if each.text == question.text]:
            self._take_back(same)
            same.answer.set_result(verdict)

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
