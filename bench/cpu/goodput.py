"""How many requests a second a server takes while nine in ten meet their targets: what is asked, and what was found.

The targets are the best peer's: five times its unloaded TTFT of a prompt of 512, two and a half times its unloaded time
for a token. A trial is a fixed number of requests, their arrivals compressed to a rate; the rate is bisected. Settings
are chosen with the first seed, each side's best is then asked with all of them. Pure: samples in, the next trial out,
so that a run which was cut off goes on with the trial that it was in.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from bench.cpu.figures import Figures
from bench.cpu.schedule import EVEN, LONG_ANSWERS, LONG_PROMPTS, Sample, Turn
from bench.cpu.servers import Contender
from bench.traffic import Record, Request, Target, mixed_plan, quantile, read_trace, trace_plan
from bench.traffic.plan import TRACES, TraceRow

GROUP, UNLOADED = "goodput", "unloaded"
TRACE_FILES = {"azure-conv": "azure2023_conv.csv.gz", "azure-code": "azure2023_code.csv.gz"}
ARRIVALS = ("poisson", *TRACE_FILES)
LENGTHS = 0.12
"""Of the traces' prompts and answers, for models of this size on two cores."""
LIKE_PEER, LIKE_SPLIT, LIKE_ONE = "peer", "split", "one process"
SIDES: Mapping[str, tuple[str, ...]] = {
    LIKE_PEER: ("vllm", "vllm-128", "vllm-256", "vllm-512"),
    LIKE_SPLIT: tuple(Contender("ours", split).name for split in (EVEN, LONG_PROMPTS, LONG_ANSWERS)),
    LIKE_ONE: ("unified-128", "unified-256", "unified-512"),
}
GOOD_PERCENT = 90.0
TTFT_TIMES, TPOT_TIMES = 5.0, 2.5
LEAST_RATIO, LEAST_ARRIVALS = 1.2, 2
"""Ours to the best peer, and in how many kinds of arrivals."""
WIDER, CLOSE, MOST_TIMES = 1.5, 1.1, 64.0
"""The rate goes up or down by so much until a good and a bad one are known, which are close when they differ by less;
no rate is tried that is so many times the first, or a part of it."""
FIRST_RATES = {"llama-0.5b": 0.5, "smollm2-135m": 2.0}


@dataclass(frozen=True)
class Ask:
    """A trial that is still to be made. `rate` 0: the unloaded server."""

    model: str
    contender: str
    arrivals: str
    seed: int
    rate: float

    @property
    def turn(self) -> Turn:
        return Turn(self.model, GROUP, self.seed, self.arrivals, self.contender)


def plan(arrivals: str, rate: float, seed: int, count: int) -> list[Request]:
    """So many requests; of another rate the same ones, closer together."""
    if arrivals in TRACE_FILES:
        found = trace_plan(_rows(arrivals), rate=1.0, seconds=count, length_scale=LENGTHS, max_prompt=2048, seed=seed)
    else:
        source, at, times = random.Random(seed), 0.0, list[float]()
        for _ in range(count):
            times.append(at)
            at += source.expovariate(1.0)
        found = mixed_plan(times, prompt_tokens=(64, 1024), max_tokens=(32, 128), seed=seed)
    return [replace(request, at=request.at / rate) for request in found]


@cache
def _rows(arrivals: str) -> list[TraceRow]:
    return read_trace(TRACES / TRACE_FILES[arrivals])


def judged(records: Sequence[Record], target: Target) -> Figures:
    """Requests that met both, in percent of those that were sent; who failed met nothing."""
    met = sum(target.met_by(record) for record in records)
    seen = {
        "p90_ttft_ms": quantile([record.ttft for record in records if record.ttft is not None], 90),
        "p90_tpot_ms": quantile([record.tpot for record in records if record.tpot is not None], 90),
    }
    return {"met_percent": 100 * met / len(records)} | {name: 1000 * at for name, at in seen.items() if at is not None}


class Found:
    """The samples of one model that count: with as many requests to a trial, against the targets of today."""

    def __init__(self, samples: Iterable[Sample], model: str, requests: int) -> None:
        mine = [sample for sample in samples if sample.turn.model == model and sample.turn.group == GROUP]
        self.model, self.requests, self.samples = model, requests, mine
        self.unloaded = {s.turn.contender: s.figures for s in mine if s.turn.part == UNLOADED and not s.error}
        self.lost = [sample for sample in mine if sample.error]
        self.target = self._target()
        limits = self.limits
        self._trials: dict[tuple[str, str, int], dict[float, bool]] = {}
        for sample in mine:
            figures, turn = sample.figures, sample.turn
            if turn.part != UNLOADED and all(figures.get(name) == value for name, value in limits.items()):
                good = not sample.error and figures["met_percent"] >= GOOD_PERCENT
                self._trials.setdefault((turn.contender, turn.part, turn.round), {})[figures["rate"]] = good

    @property
    def limits(self) -> dict[str, float]:
        """What a trial's sample carries, so that it is known what it was judged by. Empty without a target."""
        if self.target is None or self.target.ttft is None or self.target.tpot is None:
            return {}
        return {
            "requests": float(self.requests),
            "ttft_limit_ms": self.target.ttft,
            "tpot_limit_ms": self.target.tpot,
        }

    def _target(self) -> Target | None:
        """None until all settings of the peer have been asked, or were lost."""
        asked = {sample.turn.contender for sample in self.lost if sample.turn.part == UNLOADED}
        seen = [self.unloaded[name] for name in SIDES[LIKE_PEER] if name in self.unloaded]
        if not seen or {*SIDES[LIKE_PEER]} - asked - {*self.unloaded}:
            return None
        ttft, tpot = (min(figures[name] for figures in seen) for name in ("ttft_ms", "tpot_ms"))
        return Target(ttft=round(TTFT_TIMES * ttft, 1), tpot=round(TPOT_TIMES * tpot, 1))

    def trials(self, contender: str, arrivals: str, seed: int) -> dict[float, bool]:
        return self._trials.get((contender, arrivals, seed), {})

    def searched(self, contender: str, arrivals: str, seed: int) -> float | None:
        """The greatest good rate; None: it is still being looked for."""
        trials = self.trials(contender, arrivals, seed)
        return None if next_rate(trials, FIRST_RATES[self.model]) is not None else greatest(trials)

    def best(self, side: str, arrivals: str, seed: int) -> str | None:
        """Of its settings; None: one is still being asked."""
        rates = {name: self.searched(name, arrivals, seed) for name in SIDES[side]}
        known = {name: rate for name, rate in rates.items() if rate is not None}
        return max(known, key=known.__getitem__) if len(known) == len(rates) else None

    def goodput(self, side: str, arrivals: str, seeds: Sequence[int]) -> tuple[str, list[float]] | None:
        """The setting that was chosen and its rate with each seed; None: not all are measured."""
        name = self.best(side, arrivals, seeds[0])
        rates = [self.searched(name, arrivals, seed) for seed in seeds] if name else []
        known = [rate for rate in rates if rate is not None]
        return (name, known) if name and len(known) == len(seeds) else None


def next_rate(trials: Mapping[float, bool], first: float) -> float | None:
    """To be tried next, by what is known of others; None: the greatest good rate is known, or there is none."""
    good = max((rate for rate, met in trials.items() if met), default=None)
    bad = min((rate for rate, met in trials.items() if not met and rate > (good or 0.0)), default=None)
    if good is None and bad is None:
        return first
    if good is None or bad is None:
        further = bad / WIDER if good is None and bad else (good or first) * WIDER
        return round(further, 4) if first / MOST_TIMES <= further <= first * MOST_TIMES else None
    return round(math.sqrt(good * bad), 4) if bad / good > CLOSE else None


def greatest(trials: Mapping[float, bool]) -> float:
    """0: none was good."""
    return max((rate for rate, met in trials.items() if met), default=0.0)


def asks(found: Found, arrivals: Sequence[str], seeds: Sequence[int]) -> Iterator[Ask]:
    """What can be asked now, in order: the first is to be asked next, then look again. Server by server, since each
    takes its time to start."""

    def ask(contender: str, kind: str, seed: int, rate: float) -> Ask:
        return Ask(found.model, contender, kind, seed, rate)

    def search(contender: str, kind: str, seed: int) -> Iterator[Ask]:
        rate = next_rate(found.trials(contender, kind, seed), FIRST_RATES[found.model])
        if rate is not None:
            yield ask(contender, kind, seed, rate)

    lost = {sample.turn.contender for sample in found.lost if sample.turn.part == UNLOADED}
    for contender in SIDES[LIKE_PEER]:
        if contender not in {*found.unloaded, *lost}:
            yield ask(contender, UNLOADED, 0, 0.0)
    if found.target is None:
        return
    for contender in (name for side in SIDES for name in SIDES[side]):
        for kind in arrivals:
            yield from search(contender, kind, seeds[0])
    chosen = {(found.best(side, kind, seeds[0]), kind) for side in SIDES for kind in arrivals}
    for contender, kind in sorted((name, kind) for name, kind in chosen if name):
        for seed in seeds[1:]:
            yield from search(contender, kind, seed)


def progress(found: Found, arrivals: Sequence[str], seeds: Sequence[int]) -> tuple[int, int]:
    """Searches that have ended, and all."""
    settings = [name for side in SIDES for name in SIDES[side]]
    first = sum(found.searched(name, kind, seeds[0]) is not None for name in settings for kind in arrivals)
    pairs = {(name, kind) for side in SIDES for kind in arrivals if (name := found.best(side, kind, seeds[0]))}
    later = sum(found.searched(name, kind, seed) is not None for name, kind in pairs for seed in seeds[1:])
    return first + later, len(arrivals) * (len(settings) + len(SIDES) * (len(seeds) - 1))


@dataclass(frozen=True)
class Outcome:
    """Of one kind of arrivals: each side's setting and its rates, by side."""

    arrivals: str
    sides: Mapping[str, tuple[str, list[float]]]

    @property
    def ratio(self) -> float | None:
        """The better of ours to the best peer, medians over the seeds; infinite where the peer meets the targets at no
        rate, 0 where neither does. None: not all was measured."""
        if {*self.sides} != {*SIDES}:
            return None
        ours = max(statistics.median(self.sides[side][1]) for side in (LIKE_SPLIT, LIKE_ONE))
        peer = statistics.median(self.sides[LIKE_PEER][1])
        return ours / peer if peer else math.inf if ours else 0.0


def outcomes(found: Found, arrivals: Sequence[str], seeds: Sequence[int]) -> list[Outcome]:
    return [
        Outcome(kind, {side: got for side in SIDES if (got := found.goodput(side, kind, seeds))}) for kind in arrivals
    ]


def holds(found: Sequence[Outcome]) -> bool | None:
    """None: too little is measured to tell."""
    ratios = [outcome.ratio for outcome in found]
    enough = sum(ratio is not None and ratio >= LEAST_RATIO for ratio in ratios)
    if enough >= LEAST_ARRIVALS:
        return True
    unknown = sum(ratio is None for ratio in ratios) + len(ARRIVALS) - len(ratios)
    return None if enough + unknown >= LEAST_ARRIVALS else False
