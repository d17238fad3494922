"""What a run is to do, said before it: how much, against which targets, at which rates, in which order. Pure.

Targets are multiples of what requests take that are alone; rates are parts of what the profile says that the best of
the fixed splits serves. Whoever has the profile and the unloaded figures comes to the same plan. A run's number is its
seed: arrivals and stretches of the traces are its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from bench.slo.prediction import KEPT, SPLITS, knee, met, oracle_of
from bench.traffic import Request, poisson_plan, prompt_ids, read_trace, trace_plan
from bench.traffic.plan import TRACES, TraceRow
from semipd_cli.simulator.engine import Arrival, Size
from semipd_cli.simulator.oracle import Oracle
from semipd_engine.contract import Split, StepProfileFile

PROMPT, OUTPUT = 256, 32
"""Tokens of each request of the still load and of the search for a knee."""
PROMPTS, ANSWERS, MAX_PROMPT, MAX_OUTPUT, THINNING = 0.25, 0.6, 1024, 128, 16
"""Of the traces: their lengths times these, cut, and every so manieth request, which spreads their bursts. With these
lengths the two traces want different splits."""
ORDER = ("conv", "code", "conv")
TTFT_TIMES, TPOT_TIMES = 5.0, 3.0
STILL_LOAD, SHIFT_LOAD = 0.9, 1.0
STRETCH_SECONDS = 24.0
"""Of a trace, for which its rate is said. In a stretch that is no longer than the TTFT target a queue that only grows
keeps the target, too, and what is found is no rate."""
STEP, CLOSE = 1.12, 1.07
"""A knee is looked for in such steps from the prediction, until a good and a bad rate are so close."""
RULE = (
    f"Targets: {TTFT_TIMES:g} times the mean TTFT and {TPOT_TIMES:g} times the mean time for a token of requests that "
    f"are alone ({PROMPT} tokens of prompt, {OUTPUT} of answer, and some of each trace), rounded up to a millisecond. "
    f"Still: Poisson at {STILL_LOAD:g} of the greatest of the predicted knees. Shift: "
    f"stretches of Azure's traces, conversation, code, conversation, prompts times {PROMPTS:g}, answers times "
    f"{ANSWERS:g}, every {THINNING}th request, each at {SHIFT_LOAD:g} of the greatest rate at which the profile gives "
    f"one of these splits {KEPT:.0%} of that very stretch, {STRETCH_SECONDS:g} s long; of it the first `phase_seconds` "
    "are played."
)
PREDICTED = tuple(str(split) for split in SPLITS)
"""Whose knees are said and looked for."""
FIXED = ("100/100", "100/60", "100/30")
"""Whom Auto is held against: the best constants of the simulated study are among these on most loads."""
WHOLE, AGAIN, AUTO, ONE = "100/100", "100/100 again", "auto", "one process"
ARMS = (WHOLE, AUTO, *(name for name in FIXED if name != WHOLE), ONE, AGAIN)
KNEE, STILL, SHIFT = "knee", "still", "shift"
STAGES = (STILL, SHIFT)
SIZE = Size(prefill_chunk_tokens=256)


@dataclass(frozen=True)
class Effort:
    """How much is asked. Seconds and requests are of a trial."""

    requests: int
    trials: int
    """The most of a knee."""
    rounds: int
    """Of the still load."""
    still_seconds: float
    phase_seconds: float
    """Of each of the three stretches so much is played, from its beginning."""
    alone: int
    """Requests of each kind that are alone."""
    held_out: int
    """At most so many sizes of steps that the profile has not measured."""


FULL = Effort(requests=75, trials=4, rounds=2, still_seconds=30, phase_seconds=STRETCH_SECONDS, alone=5, held_out=99)
QUICK = Effort(requests=15, trials=2, rounds=1, still_seconds=8, phase_seconds=4, alone=2, held_out=8)


@dataclass(frozen=True)
class Plan:
    """What is written, with its digest, before anything is measured under load."""

    number: int
    commit: str
    machine: str
    at: str
    """ISO 8601, UTC."""
    effort: Effort
    profile: str
    """Its SHA-256."""
    alone: Mapping[str, float]
    """Milliseconds of requests that are alone: `ttft_ms`, `tpot_ms`."""
    ttft_ms: int
    tpot_ms: int
    knees: Mapping[str, float]
    """Predicted requests a second, by fixed split."""
    rates: Mapping[str, float]
    """`still`, `conv`, `code`, requests a second."""
    rule: str = RULE

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, said: Mapping[str, Any]) -> Plan:
        return cls(**{**said, "effort": Effort(**said["effort"])})

    def crowd(self, rate: float) -> list[Request]:
        return crowd(rate, self.effort.requests, self.number)

    def load(self, stage: str, number: int) -> list[Request]:
        """Of a stage's round: the same for every arm."""
        if stage == STILL:
            seed = 1000 * self.number + 1 + number
            seconds = self.effort.still_seconds
            return poisson_plan(self.rates[STILL], seconds, prompt_tokens=PROMPT, max_tokens=OUTPUT, seed=seed)
        return shift(self.rates, self.effort.phase_seconds, self.number)


@dataclass(frozen=True)
class Sealed:
    """A plan and the digest under which it was written."""

    plan: Plan
    digest: str


class UnplannableError(Exception):
    """The profile and what was measured of requests that are alone are not of one machine; names the remedy."""


def targets(alone: Mapping[str, float]) -> tuple[int, int]:
    """Milliseconds: TTFT, TPOT."""
    return -int(-TTFT_TIMES * alone["ttft_ms"] // 1), -int(-TPOT_TIMES * alone["tpot_ms"] // 1)


def plan(
    profile: StepProfileFile,
    digest: str,
    alone: Mapping[str, float],
    effort: Effort,
    *,
    number: int,
    commit: str,
    machine: str,
    at: str,
) -> Plan:
    """`digest`: of the profile. Raises `UnplannableError`."""
    oracle, (ttft, tpot) = oracle_of(profile), targets(alone)

    def most(split: Split, of: str) -> float:
        def keeps(rate: float) -> bool:
            arrivals = requests(of, rate, effort, number)
            return met(oracle, split, _arrivals(arrivals), ttft / 1e3, tpot / 1e3, SIZE) >= KEPT * len(arrivals)

        return round(knee(keeps, low=0.25), 3)

    knees = {str(split): most(split, KNEE) for split in SPLITS}
    rates = {STILL: round(STILL_LOAD * max(knees.values()), 3)}
    for trace in dict.fromkeys(ORDER):
        rates[trace] = round(SHIFT_LOAD * max(most(split, trace) for split in SPLITS), 3)
    if nothing := [name for name, rate in {**knees, **rates}.items() if not rate]:
        raise UnplannableError(
            f"by the profile no rate keeps TTFT {ttft} ms and TPOT {tpot} ms ({', '.join(nothing)}): the machine had "
            "other work while it was measured; delete the run's profile.json and alone.json, and begin on a quiet one"
        )
    return Plan(number, commit, machine, at, effort, digest, dict(alone), ttft, tpot, knees, rates)


def requests(of: str, rate: float, effort: Effort, number: int) -> list[Request]:
    """What a prediction is made for: the search's own requests, or the first stretch of a trace."""
    if of == KNEE:
        return crowd(rate, effort.requests, number)
    return stretch(of, rate, STRETCH_SECONDS, number * 10 + ORDER.index(of))


def attained(oracle: Oracle, split: Split, load: Sequence[Request], ttft_ms: float, tpot_ms: float) -> float:
    """As the profile says (0-1)."""
    return met(oracle, split, _arrivals(load), ttft_ms / 1e3, tpot_ms / 1e3, SIZE) / len(load)


def _arrivals(load: Sequence[Request]) -> list[Arrival]:
    return [Arrival(one.at, len(one.prompt), one.max_tokens) for one in load]


def crowd(rate: float, count: int, seed: int) -> list[Request]:
    """Poisson arrivals of so many requests; at another rate the same ones, closer together or further apart."""
    source, at, found = random.Random(seed), 0.0, list[Request]()
    for number in range(count):
        at += source.expovariate(1.0)
        found.append(Request(at / rate, OUTPUT, prompt_ids(PROMPT, seed=seed * 100_003 + number)))
    return found


def shift(rates: Mapping[str, float], seconds: float, number: int) -> list[Request]:
    """The beginnings of three stretches, each of so many seconds; labels tell them apart."""
    found = list[Request]()
    for turn, trace in enumerate(ORDER):
        begin, label = turn * seconds, f"{turn + 1} {trace}"
        whole = stretch(trace, rates[trace], STRETCH_SECONDS, number * 10 + turn, label, begin)
        found += [request for request in whole if request.at < begin + seconds]
    return found


def stretch(trace: str, rate: float, seconds: float, seed: int, label: str = "", start: float = 0.0) -> list[Request]:
    return trace_plan(
        _rows(trace),
        rate=rate,
        seconds=seconds,
        max_prompt=MAX_PROMPT,
        max_output=MAX_OUTPUT,
        seed=seed,
        label=label,
        start=start,
    )


@cache
def _rows(trace: str) -> Sequence[TraceRow]:
    return [
        TraceRow(row.at, round(PROMPTS * row.input_tokens), round(ANSWERS * row.output_tokens))
        for row in read_trace(TRACES / f"azure2023_{trace}.csv.gz")[::THINNING]
    ]


def arms(number: int) -> list[str]:
    """In the order of that round: it is turned, so that nobody is always first."""
    turn = number % len(ARMS)
    return [*ARMS[turn:], *ARMS[:turn]]


def next_rate(trials: Mapping[float, bool], predicted: float, most: int) -> float | None:
    """To be tried for a knee, by which rates were good. None: it is known closely enough, or all trials are made."""
    if len(trials) >= most:
        return None
    good, bad = bracket(trials)
    if good is None and bad is None:
        return round(predicted / math.sqrt(STEP), 4)
    if good is None or bad is None:
        return round(bad / STEP if good is None and bad else (good or predicted) * STEP, 4)
    return round(math.sqrt(good * bad), 4) if bad / good > CLOSE else None


def bracket(trials: Mapping[float, bool]) -> tuple[float | None, float | None]:
    """The greatest good rate, and the least bad one above it."""
    good = max((rate for rate, kept in trials.items() if kept), default=None)
    return good, min((rate for rate, kept in trials.items() if not kept and rate > (good or 0.0)), default=None)
