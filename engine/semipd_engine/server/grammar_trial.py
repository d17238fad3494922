"""``python -m semipd_engine.server.grammar_trial PARENT MODEL VOCABULARY``: tries clients' grammars, each in a process
of its own that may die of it.

It reads questions from its standard input and writes verdicts to its standard output. For each question it forks a
child, its libraries and the vocabulary behind it, with limits on time, stack and memory; what ends the child is the
verdict. It lets through less than core, which compiles the grammar again, can bear: a smaller stack, and the first
tokens' masks are computed, too. Knows no HTTP.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import selectors
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from semipd_engine.cards.guidance import new_matcher, read_vocabulary, words
from semipd_engine.process import die_first, die_with_parent
from semipd_engine.server.errors import ApiError
from semipd_engine.server.fair_queue import FairQueue
from semipd_engine.server.structured import grammar_of
from semipd_engine.server.tools import TOOL_FORMATS, calls_grammar

QUESTION = struct.Struct("<QQI")
"""Before each: its number, its client's, and how many bytes follow. One of none takes that one back."""
VERDICT = struct.Struct("<QI")
"""Before each: the question's number, and how many bytes follow."""
AT_ONCE = 4
"""Three of one client at most."""
CPU_SECONDS = 2
"""Of one grammar: the largest that were seen in earnest take a third of one."""
WALL_SECONDS = 20.0
"""From the question to its verdict, the wait for a child included."""
STACK_BYTES = 8 << 20
"""An eighth of `core.grammar.STACK_BYTES`."""
MEMORY_BYTES = 128 << 20
"""Beyond what the parent has: the largest that were seen in earnest take a tenth of it."""
NICENESS = 5
"""Tokens go before grammars."""
WALKS, STEPS = 2, 8
"""Of tokens drawn at random among those that may follow: loops and limits show in the first few."""

TOO_DEEP = (
    "it is nested too deeply, its references make too long a chain, or it has an integer near -2 ** 63; simplify it"
)
TOO_COSTLY = f"it takes more than {CPU_SECONDS} s to compile; simplify it"
TOO_LARGE = "it takes too much memory to compile; simplify it"
BUSY = f"the grammar was not compiled within {WALL_SECONDS:g} s: the machine is busy; try again"
LOST = "the process that tried the grammar was lost: the machine is short of memory or processes; try again"
NOT_BEGUN = 3
"""Exit status of a child that could not be given its limits."""


class Trial:
    """Whether a grammar is of use with this vocabulary."""

    def __init__(self, model: Path, vocab_size: int) -> None:
        try:
            self._vocabulary: Any = read_vocabulary(model, vocab_size)
        except Exception as error:  # the libraries raise bare exceptions; who asks for a grammar hears of it
            self._vocabulary = error

    def judge(self, question: bytes) -> dict[str, str]:
        """`grammar`, or `param` and `message`, or why there is neither (`died`)."""
        try:
            return {"grammar": self._grammar(json.loads(question))}
        except ApiError as refused:
            return {"param": refused.param or "", "message": refused.message}
        except MemoryError:
            return {"died": TOO_LARGE}
        except BaseException as error:  # a panic of the library is no Exception
            return {"died": f"llguidance fails on it: {words(str(error))}"}

    def _grammar(self, asked: dict[str, Any]) -> str:
        if "fields" in asked:
            return grammar_of(asked["fields"], self.error)
        form = TOOL_FORMATS[asked["format"]]
        return calls_grammar(asked["tools"], asked["only"], form, asked["parallel"], self.error, asked["marks"])

    def error(self, grammar: str) -> str:
        """What is wrong with it; empty: nothing."""
        if isinstance(self._vocabulary, Exception):
            return f"this model's tokenizer cannot be constrained: {self._vocabulary}"
        start = new_matcher(self._vocabulary, grammar)
        if start.is_error():
            return words(start.get_error())
        for seed in range(WALKS):
            matcher, draw = start.deep_copy(), random.Random(seed)
            for length in range(STEPS):
                mask = matcher.compute_bitmask()
                places = [at for at, byte in enumerate(mask) if byte]
                if matcher.is_error() or not places:
                    return _stuck(matcher.get_error(), length)
                token = _drawn(mask, places, draw)
                if token in self._vocabulary.eos_tokens:
                    break
                if not matcher.consume_token(token):
                    return _stuck(matcher.get_error(), length + 1)
        return ""


def _drawn(mask: bytes, places: list[int], draw: random.Random) -> int:
    """A token of the mask, whose bytes at `places` are not zero. The byte comes first: to list the tokens of a large
    vocabulary takes longer than the mask."""
    at = draw.choice(places)
    return 8 * at + draw.choice([bit for bit in range(8) if mask[at] >> bit & 1])


def _stuck(error: str, length: int) -> str:
    if "NoExtension" in error or not error:
        return f"no text follows it: after {length} tokens nothing can come (a rule that only leads to itself?)"
    return f"after {length} tokens the parser is at its limits: {words(error)}"


@dataclass(frozen=True)
class _Question:
    number: int
    client: int
    text: bytes
    deadline: float


@dataclass
class _Child:
    question: _Question
    pid: int
    answer: bytearray = field(default_factory=bytearray)
    late: bool = False
    """Its time was over, and it was told to end."""


class Trials:
    """Questions in, verdicts out, `AT_ONCE` children at a time."""

    def __init__(self, questions: int, verdicts: int, judge: Callable[[bytes], dict[str, str]]) -> None:
        self._questions, self._verdicts, self._judge = questions, verdicts, judge
        self._read = bytearray()
        self._waiting: FairQueue[_Question] = FairQueue(AT_ONCE)
        self._children: dict[int, _Child] = {}
        """By the end of the pipe that it answers through."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(questions, selectors.EVENT_READ)

    def run(self) -> None:
        """Until nobody asks any more."""
        while True:
            for key, _ in self._selector.select(1.0 if self._children else None):
                if key.fd == self._questions:
                    if not self._listen():
                        return
                elif key.fd in self._children:
                    self._hear(key.fd)
            now = time.monotonic()
            for child in self._children.values():
                if now > child.question.deadline:
                    child.late = True
                    os.kill(child.pid, signal.SIGXCPU)
            for question in self._waiting.remove(lambda each, now=now: now > each.deadline):  # type: ignore[misc]
                self._say(question, json.dumps({"busy": BUSY}).encode())
            while (next_one := self._waiting.take()) is not None:
                self._begin(next_one)

    def _listen(self) -> bool:
        data = os.read(self._questions, 1 << 20)
        self._read += data
        while len(self._read) >= QUESTION.size:
            number, client, size = QUESTION.unpack_from(self._read)
            end = QUESTION.size + size
            if len(self._read) < end:
                break
            if size:
                text = bytes(self._read[QUESTION.size : end])
                self._waiting.put(client, _Question(number, client, text, time.monotonic() + WALL_SECONDS))
            else:
                self._take_back(number)
            del self._read[:end]
        return bool(data)

    def _take_back(self, number: int) -> None:
        self._waiting.remove(lambda each: each.number == number)
        for child in self._children.values():
            if child.question.number == number:
                os.kill(child.pid, signal.SIGKILL)

    def _begin(self, question: _Question) -> None:
        reading, writing = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = NOT_BEGUN
            try:
                die_with_parent(parent)
                _limit()
                status = 1
                answer = memoryview(json.dumps(self._judge(question.text)).encode())
                while answer:
                    answer = answer[os.write(writing, answer) :]
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self._children[reading] = _Child(question, pid)
        self._selector.register(reading, selectors.EVENT_READ)

    def _hear(self, reading: int) -> None:
        child = self._children[reading]
        if data := os.read(reading, 1 << 20):
            child.answer += data
            return
        self._selector.unregister(reading)
        os.close(reading)
        del self._children[reading]
        self._waiting.done(child.question.client)
        _, status, used = os.wait4(child.pid, 0)
        cause = _cause(status, used.ru_utime + used.ru_stime, child.late)
        self._say(child.question, bytes(child.answer) if status == 0 else json.dumps(cause).encode())

    def _say(self, question: _Question, answer: bytes) -> None:
        message = memoryview(VERDICT.pack(question.number, len(answer)) + answer)
        while message:
            message = message[os.write(self._verdicts, message) :]


def _limit() -> None:
    """What this process may take, from here on. What a library says before it aborts is not for the log: any client
    could fill that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for which, most in ((resource.RLIMIT_STACK, STACK_BYTES), (resource.RLIMIT_AS, has + MEMORY_BYTES)):
        _, hard = resource.getrlimit(which)
        resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _cause(status: int, spent: float, late: bool) -> dict[str, str]:
    """The kernel counts what it limits in ticks: on a busy machine a child may have spent less than its limit says."""
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    exited = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
    if killed in (signal.SIGSEGV, signal.SIGBUS):
        return {"died": TOO_DEEP}
    limited = killed == signal.SIGXCPU and not late
    if limited or (killed in (signal.SIGXCPU, signal.SIGKILL) and spent > 0.9 * CPU_SECONDS):
        return {"died": TOO_COSTLY}
    if killed == signal.SIGKILL or exited == NOT_BEGUN:  # the kernel's or a person's doing, not the grammar's
        return {"busy": LOST}
    return {"busy": BUSY} if killed == signal.SIGXCPU else {"died": TOO_LARGE}


def main() -> int:
    parent, model, vocab_size = sys.argv[1:]
    die_with_parent(int(parent))
    setproctitle("semipd: grammars")
    os.nice(NICENESS)
    die_first()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    verdicts = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no verdict
    trial = Trial(Path(model), int(vocab_size))
    gc.freeze()  # the children share what is loaded now
    Trials(0, verdicts, trial.judge).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
