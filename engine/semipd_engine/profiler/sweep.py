"""What is measured, and in which order: sizes alone, then both phases side by side under each split. Pure.

A point is a few requests whose steps have about one size. It is over when they are: there is nothing to be cut off, so
each is played the same way on every machine, and a fake one is told the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from semipd_engine.contract import Split, StepTimes

ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
"""Closer where steps bend: the first rows hide behind the weights that are read anyway, and where that ends kernels go
over to another tile, too."""
DEEP_ROWS = (1, 4)
CONTEXTS = (16, 512, 2048, 8192)
"""Tokens of a decode row's prompt: the first for all batches, the others for `DEEP_ROWS`, and the longest that there
can be for one row: what a position costs is little of a step unless there are many."""
PROMPTS = (16, 32, 64, 128, 256, 1024, 4096, 16384)
ANSWER = 48
"""Tokens of a decode row beyond its first: so many steps has a point, less those before its last row has come."""
REPEATS = 4
"""Prompts of one length, one after the other."""
MOST_TOKENS = 16_384
"""Of all prompts of a point together: what it takes is bounded."""
BESIDE_ROWS, BESIDE_CONTEXT, BESIDE_ANSWER = 8, 32, 96
"""The batch that decodes beside prompts: so short that one step computes all of it, and no row is over before the last
one has begun."""
SPLITS = (*((x, 100) for x in (20, 40, 60, 80)), (100, 100), *((100, y) for y in (80, 60, 40, 20)))
WHOLE = Split()
STALL_SECONDS = 300.0
"""Without any step for so long the engine hangs."""


@dataclass(frozen=True)
class Limits:
    """Of the engine that is measured."""

    max_model_len: int
    max_num_seqs: int
    chunk: int
    kv_tokens: int


@dataclass(frozen=True)
class Point:
    split: Split
    rows: int
    """Requests that decode; 0: prompts only."""
    context: int
    """Tokens of their prompts."""
    answer: int
    prompts: int
    """Requests that are a prompt and one token."""
    prompt: int
    """Tokens of each."""

    def __str__(self) -> str:
        parts = [f"{self.rows} rows of {self.context}"] if self.rows else []
        parts += [f"{self.prompts} prompts of {self.prompt}"] if self.prompts else []
        return f"{self.split}: {', '.join(parts)}"


def points(limits: Limits, splits: Sequence[Split]) -> list[Point]:
    """All that fit into the engine, the first of them to warm it up. `splits`: beside the whole device."""
    room = min(limits.kv_tokens // 2, MOST_TOKENS)
    longest = min(limits.max_model_len - BESIDE_ANSWER - 1, room)
    found = [Point(WHOLE, 1, min(16, longest), ANSWER, 1, min(16, longest))]
    found += [Point(WHOLE, 0, 0, 0, REPEATS if n <= limits.chunk else 1, n) for n in PROMPTS if n <= longest]
    for rows in (rows for rows in ROWS if rows <= limits.max_num_seqs):
        contexts = CONTEXTS if rows in DEEP_ROWS else CONTEXTS[:1]
        for context in sorted({*contexts, longest} if rows == 1 else contexts):
            if context <= longest and rows * (context + ANSWER) <= room:
                found.append(Point(WHOLE, rows, context, ANSWER, 0, 0))
    rows = max(1, min(BESIDE_ROWS, limits.max_num_seqs - 1, room // (2 * (BESIDE_CONTEXT + BESIDE_ANSWER))))
    context, prompt = min(BESIDE_CONTEXT, longest), min(limits.chunk, longest)
    found += [Point(split, rows, context, BESIDE_ANSWER, 2 * REPEATS, prompt) for split in splits]
    return found


class Engine(Protocol):
    """The engine that is measured."""

    def partition(self, split: Split) -> None:
        """Put it in force, and wait until it is."""

    def add(self, prompt: int, answer: int) -> None:
        """A request with so many tokens, of which none is cached."""

    def decoding(self) -> int:
        """Requests that have their first token and not their last."""

    def unfinished(self) -> int: ...

    def steps(self) -> Sequence[StepTimes]:
        """Sums since the engine began."""

    def now(self) -> float:
        """Seconds."""

    def sleep(self, seconds: float) -> None: ...


class Stalled(Exception):
    """No step in `STALL_SECONDS`."""


PAUSE = 0.02
"""Seconds between two looks at the answers."""
LOOK_SECONDS = 5.0
"""... and at the sums: who asks often disturbs what is measured."""


def sweep(engine: Engine, all_points: Iterable[Point], done: Callable[[Point], None]) -> tuple[StepTimes, ...]:
    """Sums of each point by itself but for the first, which warms the engine up: kinds are rounded, and steps of 6 and
    of 4 rows in one sum would hide what is between them. Raises `Stalled`."""
    before, found = dict[_Kind, StepTimes](), list[StepTimes]()
    for number, point in enumerate(all_points):
        engine.partition(point.split)
        for _ in range(point.rows):
            engine.add(point.context, point.answer + 1)
        if point.rows and point.prompts:  # the batch decodes when the prompts come
            _wait(engine, lambda rows=point.rows: engine.decoding() >= rows or not engine.unfinished())  # type: ignore[misc]
        for _ in range(point.prompts):
            engine.add(point.prompt, 1)
            if not point.rows:  # short ones that wait together would share a step
                _wait(engine, lambda: not engine.unfinished())
        _wait(engine, lambda: not engine.unfinished())
        done(point)
        after = engine.steps()
        found += _grown(before, after) if number else ()
        before = _kinds(after)
    return tuple(found)


def _wait(engine: Engine, over: Callable[[], bool]) -> None:
    seen, since, looked = -1, engine.now(), engine.now()
    while not over():
        engine.sleep(PAUSE)
        now = engine.now()
        if now - looked < LOOK_SECONDS:
            continue
        looked, steps = now, sum(times.steps for times in engine.steps())
        if steps != seen:
            seen, since = steps, now
        elif now - since > STALL_SECONDS:
            raise Stalled(f"no step in {STALL_SECONDS:.0f} s")


_Kind = tuple[str, int, int, int, int, int]


def _kinds(steps: Iterable[StepTimes]) -> dict[_Kind, StepTimes]:
    return {(s.phase, s.split.prefill, s.split.decode, s.batch, s.context, s.prompts): s for s in steps}


def _grown(before: dict[_Kind, StepTimes], after: Iterable[StepTimes]) -> Iterator[StepTimes]:
    """What came on top of `before`."""
    for kind, now in _kinds(after).items():
        was = before.get(kind)
        if was is None:
            yield now
        elif now.steps > was.steps:
            names = ("steps", "tokens", "context_tokens", "alone_seconds", "shared_seconds")
            yield now.model_copy(update={name: getattr(now, name) - getattr(was, name) for name in names})
