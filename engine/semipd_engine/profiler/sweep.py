"""What is measured, and in which order: sizes alone, then both phases side by side under each split. Pure.

A point is a few requests whose steps have about one size. It is over when they are: there is nothing to be cut off, so
each is played the same way on every machine, and a fake one is told the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from semipd_engine.contract import Split, StepTimes

ROWS = (1, 4, 16, 64, 256)
CONTEXTS = (16, 512, 2048, 8192)
"""Tokens of a decode row's prompt."""
PROMPTS = (16, 64, 256, 1024, 4096, 16384)
ANSWER = 24
"""Tokens of a decode row beyond its first: so many steps has a point."""
REPEATS = 4
"""Prompts of one length, one after the other."""
MOST_TOKENS = 16_384
"""Of all prompts of a point together: what it takes is bounded."""
BESIDE_ROWS, BESIDE_CONTEXT, BESIDE_ANSWER = 8, 128, 96
"""The batch that decodes beside prompts."""
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
    for rows in ROWS:
        for context in CONTEXTS:
            if rows <= limits.max_num_seqs and context <= longest and rows * (context + ANSWER) <= room:
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
    """Sums over all points but the first, which warms the engine up. Raises `Stalled`."""
    before: dict[_Kind, StepTimes] | None = None
    for point in all_points:
        engine.partition(point.split)
        for _ in range(point.rows):
            engine.add(point.context, point.answer + 1)
        if point.rows and point.prompts:  # the batch decodes when the prompts come
            _wait(engine, lambda rows=point.rows: engine.decoding() >= rows or not engine.unfinished())  # type: ignore[misc]
        for _ in range(point.prompts):
            engine.add(point.prompt, 1)
        _wait(engine, lambda: not engine.unfinished())
        done(point)
        if before is None:
            before = _kinds(engine.steps())
    return tuple(_grown(before or {}, engine.steps()))


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
