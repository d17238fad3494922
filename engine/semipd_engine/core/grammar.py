"""What an answer must look like, token by token: grammars and their masks, by llguidance, in threads of core.

A grammar's state is rebuilt from the tokens so far, so a preemption or a worker's death changes nothing. Compiling has
a thread of its own: it may take a second, and masks of grammars that are compiled do not wait for it. Knows no plans.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from semipd_engine.cards.guidance import new_matcher, read_vocabulary, words
from semipd_engine.core.request import ConstraintError
from semipd_engine.ipc.requests import GRAMMAR_LIMIT

KEPT = 64
"""Compiled grammars that are kept for the requests to come."""
KEPT_CHARACTERS = 1 << 20
"""Of theirs: compiled, one may take 250 bytes for each, and clients can send others without an end."""
WAIT_SECONDS = 0.002
"""So long the loop waits for masks, in all, before it plans without them: most take a tenth of a millisecond."""
WAIT_SHARE = 0.1
"""Part of the time that may be spent on that."""
STACK_BYTES = 64 << 20
"""Of the threads: eight times what a grammar may take where it is tried first (`server.grammar_trial`), so that none
that comes here ends core. Only what is used is ever in memory."""

LEFT = ("doesn't satisfy the grammar", "parser stopped")
"""llguidance's words for a token that no mask had."""


class Grammars:
    """One per core. `masks_ready` is called, in a thread, whenever a mask is there."""

    def __init__(self, model: Path, masks_ready: Callable[[], None]) -> None:
        self._model = model
        self._masks_ready = masks_ready
        self._compiling = _deep_thread("grammar")
        self._masking = _deep_thread("mask")
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._credit = WAIT_SECONDS
        self._credited_at = time.monotonic()

    def warm_up(self, vocab_size: int) -> None:
        """Read the model's tokenizer, in the thread: it takes a second, which should not be that of a request that
        others run beside. `vocab_size`: of the model; the tokenizer may know fewer."""
        self._compiling.submit(self._read_tokenizer, vocab_size)

    def constraint(self, grammar: str) -> GrammarConstraint:
        """Of one request; its compilation begins now."""
        constraint = GrammarConstraint(self, grammar)
        constraint.begin()
        return constraint

    def submit(self, compiled: bool, work: Callable[[], bytes]) -> Future[bytes]:
        future = (self._masking if compiled else self._compiling).submit(work)
        future.add_done_callback(lambda _: self._masks_ready())
        return future

    def wait(self, future: Future[bytes]) -> bool:
        """Is it done, perhaps after a little while?"""
        now = time.monotonic()
        self._credit = min(WAIT_SECONDS, self._credit + (now - self._credited_at) * WAIT_SHARE)
        self._credited_at = now
        while not future.done() and self._credit > 0:
            time.sleep(0.00005)
            later = time.monotonic()
            self._credit, self._credited_at = self._credit - (later - self._credited_at), later
        return future.done()

    def matcher(self, grammar: str) -> Any:
        """A new llguidance matcher, at the beginning. Called in the compiling thread. Raises `ConstraintError`."""
        if isinstance(self._tokenizer, Exception) or self._tokenizer is None:
            raise ConstraintError(f"this model's tokenizer cannot be constrained: {self._tokenizer}")
        if grammar not in self._compiled:
            self._compiled[grammar] = new_matcher(self._tokenizer, grammar)
            while len(self._compiled) > 1 and not self._may_keep():
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        matcher = self._compiled[grammar]
        if matcher.is_error():  # kept, too: each of many sequences asks for it
            raise ConstraintError(f"the grammar cannot be used: {words(matcher.get_error())}", GRAMMAR_LIMIT)
        return matcher.deep_copy()

    def _may_keep(self) -> bool:
        return len(self._compiled) <= KEPT and sum(map(len, self._compiled)) <= KEPT_CHARACTERS

    def _read_tokenizer(self, vocab_size: int) -> None:
        try:
            self._tokenizer = read_vocabulary(self._model, vocab_size)
        except Exception as error:  # the libraries raise bare exceptions; who asks for a grammar hears of it
            self._tokenizer = error
        self._compiled.clear()


class GrammarConstraint:
    """A `core.request.Constraint`. The matcher belongs to the thread that works for it: one at a time does."""

    def __init__(self, grammars: Grammars, grammar: str) -> None:
        self._grammars = grammars
        self._grammar = grammar
        self._matcher: Any = None
        self._consumed = 0
        self._pending: tuple[int, Future[bytes]] | None = None
        self._known: tuple[int, bytes] = (-1, b"")
        """How long an output was, and what may follow it."""

    def begin(self) -> None:
        """Compile, for an output that is empty yet."""
        self._pending = (0, self._grammars.submit(False, lambda: self._compute([])))

    def close(self) -> None:
        if self._pending is not None:
            self._pending[1].cancel()  # one that waits for its turn never has it; one that runs comes to its end

    def mask(self, output: Sequence[int]) -> bytes | None:
        length = len(output)
        if self._pending is None and self._known[0] != length:
            tokens, compiled = list(output), self._matcher is not None
            self._pending = (length, self._grammars.submit(compiled, lambda: self._compute(tokens)))
        if self._pending is not None:
            asked, future = self._pending
            if not self._grammars.wait(future):
                return None
            self._pending, self._known = None, (asked, future.result())
        return self._known[1] if self._known[0] == length else None

    def _compute(self, output: list[int]) -> bytes:
        """Raises `ConstraintError`, whatever goes wrong: a grammar is a client's, and must not end core."""
        try:
            return self._next_mask(output)
        except ConstraintError:
            raise
        except BaseException as error:  # a panic of the library is no Exception
            raise ConstraintError(f"the grammar went wrong: {words(repr(error))}") from None

    def _next_mask(self, output: list[int]) -> bytes:
        if self._matcher is None or self._consumed > len(output):
            self._matcher, self._consumed = self._grammars.matcher(self._grammar), 0
        new = output[self._consumed :]
        self._consumed = len(output)
        if new and not self._matcher.consume_tokens(new):
            raise self._stuck(len(output))
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(mask):
            raise self._stuck(len(output))
        return mask

    def _stuck(self, length: int) -> ConstraintError:
        """The parser's limits, and an end that is none, are the grammar's; an answer that left it is the engine's."""
        error = words(self._matcher.get_error())
        if any(sign in error for sign in LEFT):
            return ConstraintError(f"the answer left its grammar: {error}")
        after = f"after {length} tokens nothing can follow in this grammar"
        return ConstraintError(f"{after}: {error or 'it has no end there'}; simplify it", GRAMMAR_LIMIT)


def _deep_thread(name: str) -> ThreadPoolExecutor:
    """One thread, with a large stack."""
    before = threading.stack_size(STACK_BYTES)
    try:
        executor = ThreadPoolExecutor(1, name)
        executor.submit(int).result()  # it is made with its first work
    finally:
        threading.stack_size(before)
    return executor
