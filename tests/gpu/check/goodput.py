"""One trace of requests that alternates between long prompts and long answers, and what of it met its targets. Pure.

Rates and targets follow from two measurements on the card, a prompt's seconds alone and a step's alone, so that the
trace presses any card alike. Knows no engine and no mode.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.engine.harness import Stream

TTFT_PROMPTS, TPOT_STEPS = 4.0, 2.5
"""Targets: so many times what a long prompt takes alone, and so many times a step of one row."""
PROMPTS_SHARE = (0.6, 0.1)
"""Of a device that computes nothing but long prompts, in turns."""
LIVE = (16, 40)
"""Answers that run at once, in turns, if a step takes half as long again as one of one row."""


@dataclass(frozen=True)
class Alone:
    """Seconds, undisturbed."""

    prompt: float
    """A long prompt to its first token."""
    step: float
    """Between two tokens of one stream."""

    @property
    def ttft(self) -> float:
        return TTFT_PROMPTS * self.prompt + TPOT_STEPS * self.step

    @property
    def tpot(self) -> float:
        return TPOT_STEPS * self.step


@dataclass(frozen=True)
class Lengths:
    """Tokens: of long prompts with short answers, and of short prompts with long ones."""

    document: tuple[int, int]
    chat: tuple[int, int]


@dataclass(frozen=True)
class Asked:
    at: float
    prompt: int
    output: int


def trace(alone: Alone, lengths: Lengths, turns: int, seconds: float, seed: int = 0) -> list[Asked]:
    """`turns` of so many seconds each: mostly documents, then mostly chats, and so on. Arrivals are Poisson; the same
    arguments give the same trace."""
    source, found = random.Random(seed), list[Asked]()
    answer = lengths.chat[1] * 1.5 * alone.step
    for turn in range(turns):
        for rate, (prompt, output) in (
            (PROMPTS_SHARE[turn % 2] / alone.prompt, lengths.document),
            (LIVE[turn % 2] / answer, lengths.chat),
        ):
            at = source.expovariate(rate)
            while at < seconds:
                found.append(Asked(turn * seconds + at, prompt, output))
                at += source.expovariate(rate)
    return sorted(found, key=lambda one: one.at)


@dataclass(frozen=True)
class Served:
    """Of one request; what has not come by the end has not met its target."""

    ttft: float | None
    tpot: float | None
    whole: bool

    @classmethod
    def of(cls, stream: Stream, sent: float) -> Served:
        times = list(stream.times)
        tpot = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
        return cls(times[0] - sent if times else None, tpot, stream.done.is_set() and stream.error is None)

    def good(self, alone: Alone) -> bool:
        return (
            self.whole
            and self.ttft is not None
            and self.ttft <= alone.ttft
            and (self.tpot is None or self.tpot <= alone.tpot)
        )


def summary(mode: str, served: Sequence[Served], alone: Alone, seconds: float) -> dict[str, object]:
    good = sum(one.good(alone) for one in served)
    ttft = [one.ttft for one in served if one.ttft is not None]
    tpot = [one.tpot for one in served if one.tpot is not None]
    return {
        "mode": mode,
        "requests": len(served),
        "met both": good,
        "goodput, 1/s": round(good / seconds, 3),
        "TTFT p90, ms": _p90(ttft),
        "TPOT p90, ms": _p90(tpot),
    }


def _p90(seconds: Sequence[float]) -> float | str:
    return round(sorted(seconds)[int(0.9 * len(seconds))] * 1000, 2) if seconds else ""


def fitting(alone: Alone, turns: int, runs: int, seconds: float, longest: float) -> float:
    """Seconds of a turn, so that as many runs of the trace, each with its end, take so many seconds in all; at most
    `longest`."""
    return max(0.0, min(longest, (seconds / runs - 2 * alone.ttft - 1.0) / turns))
