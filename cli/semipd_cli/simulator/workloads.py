"""What is asked of the simulated engine, and its targets: Poisson and Gamma streams, traces, shifting mixes."""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from semipd_cli.simulator.engine import Arrival

LONGEST_PROMPT = 60_000
"""Tokens; longer ones of a trace are cut."""
COLUMNS = "numbers in the columns t_s, input_tokens and output_tokens"


@dataclass(frozen=True)
class Lengths:
    """Tokens: exponential with these means, or lognormal with these medians where `sigma` (prompt, output) is set."""

    prompt: float
    output: float
    sigma: tuple[float, float] | None = None

    def draw(self, rng: random.Random) -> tuple[int, int]:
        if self.sigma is None:
            return 1 + round(rng.expovariate(1 / self.prompt)), 2 + round(rng.expovariate(1 / self.output))
        prompt = self.prompt * rng.lognormvariate(0, self.sigma[0])
        output = self.output * rng.lognormvariate(0, self.sigma[1])
        return max(4, min(16_000, round(prompt))), max(2, min(2_000, round(output)))


def stream(
    rate: float, seconds: float, lengths: Lengths, seed: int, *, start: float = 0.0, shape: float = 1.0
) -> Iterator[Arrival]:
    """Gamma arrivals at `rate` a second; `shape` 1 is Poisson, below it bursts."""
    rng, t = random.Random(seed), start
    while (t := t + rng.gammavariate(shape, 1 / (rate * shape))) < start + seconds:
        yield Arrival(t, *lengths.draw(rng))


def trace(path: Path, seconds: float, speed: float, *, skip: float = 0.0, seed: int = 0) -> Iterator[Arrival]:
    """`seconds` of a recorded trace (columns t_s, input_tokens, output_tokens) from `skip` of its own time on, run
    `speed` times as fast. Timestamps that were rounded to some seconds are spread over them again. Where it tells
    blocks of 512 tokens (prefix_block_ids), a prompt is what a cache that keeps everything would leave to compute, and
    at most `LONGEST_PROMPT`.

    Raises:
        OSError, ValueError: it cannot be read, or is no such trace.
    """
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as f:
            told = [
                (float(r["t_s"]), int(r["input_tokens"]), int(r["output_tokens"]), r.get("prefix_block_ids"))
                for r in csv.DictReader(f)
            ]
    except (KeyError, TypeError, ValueError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
        raise ValueError(f"{path} does not have {COLUMNS} ({type(error).__name__}: {error})") from error
    for number, (t, prompt, output, _) in enumerate(told, 1):
        if not (math.isfinite(t) and prompt >= 0 and output >= 0):
            raise ValueError(f"{path}: request {number}: t_s {t:g}, input_tokens and output_tokens must be 0 or more")
    cached = _Prefixes()
    rows = [(t, cached.left(prompt, ids), output) for t, prompt, output, ids in told]
    times = sorted({t for t, _, _ in rows})
    quantum = min((b - a for a, b in itertools.pairwise(times)), default=0.0)
    quantum = quantum if quantum >= 0.5 else 0.0
    rng = random.Random(seed)
    spread = sorted((t + rng.random() * quantum, p, o) for t, p, o in rows)
    for t, prompt, output in spread:
        at = (t - skip) / speed
        if 0 <= at < seconds:
            yield Arrival(at, min(max(1, prompt), LONGEST_PROMPT), max(1, output))


class _Prefixes:
    """Blocks that were seen before."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def left(self, prompt: int, ids: str | None) -> int:
        blocks = (ids or "").split()
        known = sum(1 for _ in itertools.takewhile(self._seen.__contains__, blocks))
        self._seen.update(blocks)
        return max(1, prompt - 512 * known)


@dataclass(frozen=True)
class Workload:
    name: str
    ttft_milliseconds: int
    tpot_milliseconds: int
    arrivals: Callable[[float, int], Iterator[Arrival]]
    """(seconds, seed) -> arrivals in order."""
    stationary: bool = True
    oracle: str = "cpu"
    file: Path | None = None
    """Of a trace."""


CHAT = Lengths(800, 200, (0.9, 0.8))
DOC = Lengths(4000, 60, (0.6, 0.7))
GEN = Lengths(150, 500, (0.8, 0.6))


def steady(rate: float, lengths: Lengths) -> Callable[[float, int], Iterator[Arrival]]:
    return lambda seconds, seed: stream(rate, seconds, lengths, seed)


def mixed(rate: float, part: float) -> Callable[[float, int], Iterator[Arrival]]:
    def arrivals(seconds: float, seed: int) -> Iterator[Arrival]:
        both = [*stream(rate * (1 - part), seconds, CHAT, seed), *stream(rate * part, seconds, DOC, seed + 7919)]
        return iter(sorted(both, key=lambda a: a.at))

    return arrivals


def turns(first: tuple[float, Lengths], second: tuple[float, Lengths]) -> Callable[[float, int], Iterator[Arrival]]:
    """Three equal stretches: the first load, the second, the first again."""

    def arrivals(seconds: float, seed: int) -> Iterator[Arrival]:
        third = seconds / 3
        for k, (rate, lengths) in enumerate((first, second, first)):
            yield from stream(rate, third, lengths, seed + 104_729 * k, start=k * third)

    return arrivals


WORKLOADS = {
    w.name: w
    for w in (
        Workload("1155/211@4", 750, 18, steady(4.0, Lengths(1155, 211))),
        Workload("2000/60@3.25", 750, 30, steady(3.25, Lengths(2000, 60))),
        Workload("2048/60@3.5", 750, 30, steady(3.5, Lengths(2048, 60))),
        Workload("300/400@4", 750, 14, steady(4.0, Lengths(300, 400))),
        Workload("chat", 500, 25, steady(9.0, CHAT), oracle="gpu"),
        Workload("doc", 2000, 25, steady(2.8, DOC), oracle="gpu"),
        Workload("gen", 500, 15, steady(17.0, GEN), oracle="gpu"),
        Workload("mix", 1000, 25, mixed(6.0, 0.2), oracle="gpu"),
        Workload("chat-cpu", 1000, 25, steady(4.0, CHAT)),
        Workload("gen-doc-gen", 1000, 15, turns((16.0, GEN), (2.8, DOC)), stationary=False, oracle="gpu"),
        Workload("gen-doc-gen-cpu", 1500, 14, turns((3.2, GEN), (2.4, DOC)), stationary=False),
        Workload(
            "prompts-answers-prompts",
            750,
            14,
            turns((3.25, Lengths(2000, 60)), (3.8, Lengths(100, 400))),
            stationary=False,
        ),
    )
}


def of_trace(
    path: Path,
    speed: float,
    ttft: int,
    tpot: int,
    oracle: str,
    *,
    stride: float | None = None,
    stretch: Callable[[int], int] = lambda seed: seed,
) -> Workload:
    """Each seed plays the stretch of this number, from 0 on, `stride` seconds of the trace's own time apart (None: 300
    times `speed`)."""
    apart = 300.0 * speed if stride is None else stride

    def arrivals(seconds: float, seed: int) -> Iterator[Arrival]:
        return trace(path, seconds, speed, skip=apart * stretch(seed), seed=seed)

    return Workload(path.name.split(".")[0], ttft, tpot, arrivals, stationary=False, oracle=oracle, file=path)
