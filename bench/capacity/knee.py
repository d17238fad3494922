"""The ratio against the knee: what it says at parts of the load that some split really just serves.

The knee is found by brute force, without any model: constant splits in reach are played on the simulated engine at one
rate after the other, and the greatest rate at which one of them keeps both targets at the SLO's percentile is it.
A ratio that is right says f at f times that rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from semipd_agent.contract import SLO, Bounds
from semipd_agent.slo.future import Setting, candidates
from semipd_agent.slo.policy import prefill_share
from semipd_cli.simulator.engine import Size, VirtualEngine
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
"""Of the knee. The pods that are asked for their ratio have arrivals of their own."""
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
    """Requests a second: where the search begins."""
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
    Case("2000/60", Lengths(2000, 60), 1000, 40, "other-cpu", 2.2),
    Case("300/400", Lengths(300, 400), 1000, 22, "other-cpu", 2.6),
    Case("chat", CHAT, 1500, 75, "other-gpu", 2.8),
    Case("doc", DOC, 4000, 75, "other-gpu", 1.0),
    Case("gen", GEN, 1500, 34, "other-gpu", 3.0),
)


@dataclass(frozen=True)
class Knee:
    rate: float
    split: str


@dataclass(frozen=True)
class Reading:
    """What one pod said at `load` times the knee, from `start` on; or pods with other arrivals did on average."""

    case: str
    load: float
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


def on_average(readings: Sequence[Reading]) -> Reading:
    """Of pods that differ in their arrivals alone. What came to one of them in two minutes was another load than was
    meant: of 80 prompts of exponential lengths the work is a sixth more or less."""
    first = readings[0]
    return Reading(
        first.case,
        first.load,
        first.start,
        fmean(r.young for r in readings),
        fmean(r.settled for r in readings),
        min(r.lowest for r in readings),
        max(r.highest for r in readings),
        max(r.moves for r in readings),
    )


def in_reach(case: Case) -> list[Split]:
    """From the smallest part of prefill to the largest."""
    found = candidates(Setting(case.slo, Split(), Bounds(), grid_of(case.oracle), mixes=False))
    return sorted(found, key=prefill_share)


def keeps(case: Case, split: Split, rate: float, seconds: float = PLAYED_SECONDS) -> bool:
    """Both targets, by all requests of all seeds together. It ends as soon as too many have missed one."""
    return pressure(case, split, rate, seconds, hopeless=True) <= 1


def pressure(case: Case, split: Split, rate: float, seconds: float, *, hopeless: bool = False) -> float:
    """The larger of the two latencies at the percentile, over its target. Raises ValueError where nothing counts.

    `hopeless`: infinite, too, once more requests have missed a target than may in the end, however many there will be.
    """
    if seconds <= WARM_UP:
        raise ValueError(f"seconds {seconds:g}: the first {WARM_UP:g} do not count")
    p, targets = case.slo.percentile / 100, (case.ttft_milliseconds / 1000, case.tpot_milliseconds / 1000)
    streams = {seed: list(stream(rate, seconds, case.lengths, seed)) for seed in SEEDS}
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
    case: Case, splits: Sequence[Split], seconds: float = PLAYED_SECONDS, step: Callable[[], None] = lambda: None
) -> Knee:
    """By bisection, each split being asked for the rates that none before it keeps. No valley is assumed."""
    best, low = splits[0], case.about / 16
    for split in _outwards(splits):
        if keeps(case, split, low * PRECISION, seconds):
            low, high = low * PRECISION, 1.5 * max(low, case.about / 2)
            while keeps(case, split, high, seconds):
                low, high = high, 1.5 * high
            while high / low > PRECISION:
                middle = math.sqrt(low * high)
                low, high = (middle, high) if keeps(case, split, middle, seconds) else (low, middle)
            best = split
        step()
    return Knee(low, str(best))


def _outwards(splits: Sequence[Split]) -> list[Split]:
    """The middle first: a good first knee spares most of the others' search."""
    middle = (len(splits) - 1) / 2
    return [splits[k] for k in sorted(range(len(splits)), key=lambda k: abs(k - middle))]


def read(case: Case, rate: float, load: float, start: Split, seed: int, seconds: int = END) -> Reading:
    """A pod born at `load` times the knee's `rate`, with the split `start`."""
    pod = Pod(
        case.slo, case.oracle, case.size, stream(load * rate, seconds, case.lengths, seed), split=start, seed=seed
    )
    ratios, moves = list[float](), 0
    for second in range(1, seconds + 1):
        before = pod.split
        pod.tick(float(second))
        moves += pod.split != before
        ratios.append(math.nan if pod.ratio is None else pod.ratio)
    old = ratios[SETTLED:]
    return Reading(case.name, load, str(start), fmean(ratios[YOUNG:SETTLED]), fmean(old), min(old), max(old), moves)
