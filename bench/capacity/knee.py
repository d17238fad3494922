"""The ratio against the knee: what it says at parts of the load that some split really just serves.

The knee is found by brute force, without any model: constant splits in reach are played on the simulated engine at one
load after the other, and the greatest at which one of them keeps both targets at the SLO's percentile is it. It is
that of the very arrivals that a pod is asked about, played faster: of five minutes of one stream the work alone is a
tenth or a sixth more or less than that of another with the same rate, and a ratio tells of what came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from semipd_agent.contract import SLO, Bounds
from semipd_agent.slo.candidates import candidates
from semipd_agent.slo.future import Setting
from semipd_agent.slo.policy import prefill_share
from semipd_agent.slo.utilization import WINDOW_SECONDS
from semipd_cli.simulator.engine import Arrival, Size, VirtualEngine
from semipd_cli.simulator.oracle import ORACLES
from semipd_cli.simulator.policies import grid_of
from semipd_cli.simulator.scaling.pod import Pod
from semipd_cli.simulator.study import quantile
from semipd_cli.simulator.workloads import CHAT, DOC, GEN, Lengths, stream
from semipd_engine.contract import Split

PLAYED_SECONDS, WARM_UP = 400.0, 40.0
PATIENCE = 120.0
"""After the last arrival; whoever is not served by then has missed."""
LOOK = 40.0
"""Seconds between two looks at how many have missed."""
SEEDS = (11, 12, 13)
"""Of a knee in requests a second."""
PRECISION = 1.02
STARTS = (Split(), Split(prefill=20), Split(decode=20))
LOADS = (0.3, 0.6, 0.9, 1.2)
YOUNG, SETTLED, END = 60, 150, 330
"""Seconds: readings of a pod that was born under load, from `YOUNG` to `SETTLED`; and of an old one, to `END`."""


WIDE = Size(max_num_seqs=256)


@dataclass(frozen=True)
class Case:
    name: str
    lengths: Lengths
    ttft_milliseconds: int
    tpot_milliseconds: int
    oracle: str
    about: float
    """Requests a second that are about its capacity."""
    size: Size = WIDE

    @property
    def slo(self) -> SLO:
        return SLO.model_construct(
            ttft_milliseconds=self.ttft_milliseconds,
            tpot_milliseconds=self.tpot_milliseconds,
            percentile=90,
            window_seconds=60,
        )


CASES = (
    Case("2000/60", Lengths(2000, 60), 1000, 40, "other-cpu", 1.75),
    Case("300/400", Lengths(300, 400), 1000, 22, "other-cpu", 4.4),
    Case("chat", CHAT, 1500, 75, "other-gpu", 2.4),
    Case("doc", DOC, 4000, 75, "other-gpu", 0.63),
    Case("gen", GEN, 1500, 34, "other-gpu", 3.0),
)


@dataclass(frozen=True)
class Knee:
    factor: float
    """Of `Streams`: the largest that some split serves."""
    split: str


@dataclass(frozen=True)
class Reading:
    """What one pod said of a load of which some split would serve 1 / `load` times as much, from `start` on."""

    case: str
    load: float
    seed: int
    start: str
    young: float
    settled: float
    """Means of the readings in both stretches of its life."""
    lowest: float
    highest: float
    """Of the single readings of the second stretch."""
    moves: int

    @property
    def error(self) -> float:
        """Of the settled mean, as a part of the truth."""
        return self.settled / self.load - 1

    @property
    def young_error(self) -> float:
        return self.young / self.load - 1


def in_reach(case: Case) -> list[Split]:
    """From the smallest part of prefill to the largest."""
    found = candidates(Setting(case.slo, Split(), Bounds(), grid_of(case.oracle), mixes=False))
    return sorted(found, key=prefill_share)


Streams = Callable[[float], Mapping[int, Sequence[Arrival]]]
"""By seed, what comes at so many times the load."""


def poisson(case: Case, seconds: float = PLAYED_SECONDS) -> Streams:
    """Factors are requests a second."""
    return lambda rate: {seed: list(stream(rate, seconds, case.lengths, seed)) for seed in SEEDS}


def sped_up(arrivals: Sequence[Arrival], lasts: float, seed: int, seconds: float = PLAYED_SECONDS) -> Streams:
    """The very arrivals of `lasts` seconds, so many times as fast, and over again until `seconds` are full."""

    def times(factor: float) -> Mapping[int, Sequence[Arrival]]:
        turns = range(math.ceil(seconds * factor / lasts))
        played = [replace(a, at=(a.at + turn * lasts) / factor) for turn in turns for a in arrivals]
        return {seed: [a for a in played if a.at < seconds]}

    return times


def keeps(case: Case, split: Split, streams: Mapping[int, Sequence[Arrival]], seconds: float = PLAYED_SECONDS) -> bool:
    """Both targets, by all requests of all seeds together. It ends as soon as too many have missed one."""
    return pressure(case, split, streams, seconds, hopeless=True) <= 1


def pressure(
    case: Case, split: Split, streams: Mapping[int, Sequence[Arrival]], seconds: float, *, hopeless: bool = False
) -> float:
    """The larger of the two latencies at the percentile, over its target. Raises ValueError where nothing counts.

    `hopeless`: infinite, too, once more requests have missed a target than may in the end, however many there will be.
    """
    if seconds <= WARM_UP:
        raise ValueError(f"seconds {seconds:g}: the first {WARM_UP:g} do not count")
    p, targets = case.slo.percentile / 100, (case.ttft_milliseconds / 1000, case.tpot_milliseconds / 1000)
    counted = sum(a.at >= WARM_UP for arrivals in streams.values() for a in arrivals)
    most = counted - 1 - int(p * counted) if hopeless else counted
    ttft, tpot = list[float](), list[float]()
    for seed, arrivals in streams.items():
        engine = VirtualEngine(arrivals, ORACLES[case.oracle], case.size, seed, split)
        judged = 0
        while engine.now < seconds + PATIENCE:
            engine.run_until(min(engine.now + LOOK, seconds + PATIENCE))
            done = [d for d in engine.done[judged:] if d.at >= WARM_UP]
            judged = len(engine.done)
            ttft += [d.ttft if d.ttft is not None else math.inf for d in done]
            tpot += [d.tpot for d in done if d.tpot is not None]
            if any(sum(v > target for v in told) > most for told, target in zip((ttft, tpot), targets, strict=True)):
                return math.inf
        ttft += [math.inf] * (sum(a.at >= WARM_UP for a in arrivals) - sum(d.at >= WARM_UP for d in engine.done))
    return max(quantile(told, p) / target for told, target in zip((ttft, tpot), targets, strict=True))


def knee(
    case: Case,
    splits: Sequence[Split],
    streams: Streams,
    about: float,
    seconds: float = PLAYED_SECONDS,
) -> Knee:
    """By bisection, each split being asked for the factors that none before it keeps. No valley is assumed. `about`:
    where the search begins."""
    best, low = splits[0], about / 16
    for split in _outwards(splits):
        if keeps(case, split, streams(low * PRECISION), seconds):
            low, high = low * PRECISION, 1.5 * max(low, about / 2)
            while keeps(case, split, streams(high), seconds):
                low, high = high, 1.5 * high
            while high / low > PRECISION:
                middle = math.sqrt(low * high)
                low, high = (middle, high) if keeps(case, split, streams(middle), seconds) else (low, middle)
            best = split
    return Knee(low, str(best))


def room(case: Case, load: float, seed: int) -> Knee:
    """m*, by brute force, of the very arrivals that pods with this seed are asked about: their last 300 s."""
    first = SETTLED - WINDOW_SECONDS
    came = list(stream(load * case.about, END, case.lengths, seed))
    late = [replace(a, at=a.at - first) for a in came if a.at >= first]
    return knee(case, in_reach(case), sped_up(late, END - first, seed), 1 / load)


def _outwards(splits: Sequence[Split]) -> list[Split]:
    """The middle first: a good first knee spares most of the others' search."""
    middle = (len(splits) - 1) / 2
    return [splits[k] for k in sorted(range(len(splits)), key=lambda k: abs(k - middle))]


def read(case: Case, rate: float, load: float, start: Split, seed: int, seconds: int = END) -> Reading:
    """A pod born under `rate` requests a second, which are `load` of what it can serve, with the split `start`."""
    pod = Pod(case.slo, case.oracle, case.size, stream(rate, seconds, case.lengths, seed), split=start, seed=seed)
    ratios = list[float]()
    for second in range(1, seconds + 1):
        pod.tick(float(second))
        ratios.append(math.nan if pod.ratio is None else pod.ratio)
    young, old = fmean(ratios[YOUNG:SETTLED]), ratios[SETTLED:]
    return Reading(case.name, load, seed, str(start), young, fmean(old), min(old), max(old), pod.moved)
