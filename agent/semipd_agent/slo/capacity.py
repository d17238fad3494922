"""How full a pod is, as one number for autoscaling: 0 is idle, 1 is the edge of the SLO, 2 would need two pods. Pure.

Provisional; the measured model of the controller will replace it. What a sum over pods needs is a ratio that is linear
in the load, which a latency is not: it hardly moves at half load and has no bound beyond capacity. So:

* Each phase has a load rho from 0 to 1. Where a latency grows like ``1 / (1 - rho)``, the load that just meets the
  target is ``rho* = 1 - J (1 - rho)``, J being the observed latency over its target. The ratio is ``rho / rho*``: it is
  1 exactly where J is.
* Prefill is a queue: rho is the part of the time in which a prompt waits or runs, times arrived over served tokens.
  Beyond capacity the queue grows and rho with it, however good the requests look that have finished.
* Decode is a batch: ``n`` requests step in ``d0 + d1 n``, so the mean TPOT is ``d0 / (1 - rho)``. d0 is the least TPOT
  that any request has had.

What another split would mend needs no replica, for a while: see `_mended`. An alarming latency proves that a pod is
over the edge, not by how much, so it asks for half as much again at most; only offered load asks for more. It knows no
engine, no device and no replica count.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from semipd_agent.contract import SLO, Bounds
from semipd_agent.slo.evidence import Sample, tpot_sample, ttft_sample
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.policy import Metric
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import EngineSnapshot, FinishedRequest, Split

Estimate = Callable[[Metric, float, Split, Split], float]
"""(metric, observed value, split it was observed under, another split) -> value expected under the other."""

SHORTEST, LONGEST = 10.0, 60.0
"""The window is the SLO's, within these bounds: the engine tells the arrivals of the last minute."""
SMOOTHING = 0.5
"""Time constant of the moving average of the ratio, in windows."""
LEAST_EDGE = 0.25
"""A phase that is idle for more than three quarters of the time is not what makes requests late."""
MOST_BY_LATENCY = 1.5
MOST_GROWTH = 4.0
"""Most of arrived over served tokens that is believed."""
OVERDUE = 1.05
"""The least ratio while a request waits that has missed its target already."""
MENDABLE, MEND_SECONDS = 0.8, 60.0
"""For so long a pressure above 1 that another split would bring below 1 counts as the former."""
FLOOR_TOKENS = 8
"""Fewer output tokens make no trustworthy TPOT."""


@dataclass(frozen=True)
class Load:
    """What the ratio is made from; all are fractions."""

    prefill: float
    """rho of prefill; above 1 the queue grows."""
    decode: float
    ttft_pressure: float = 0.0
    """TTFT over its target at the best split in reach; 0 without target or samples."""
    tpot_pressure: float = 0.0
    overdue: bool = False


def utilization_ratio(load: Load) -> float:
    """The fuller of the two phases. Never negative, never above `MOST_GROWTH`."""
    full = max(_full(load.prefill, load.ttft_pressure), _full(load.decode, load.tpot_pressure))
    return max(full, OVERDUE) if load.overdue else full


def _full(rho: float, pressure: float) -> float:
    if rho >= 1:
        return rho
    edge = max(1 - pressure * (1 - rho), LEAST_EDGE)
    return max(rho, min(rho / edge, MOST_BY_LATENCY))


@dataclass(frozen=True)
class _Tick:
    at: float
    seconds: float
    prefill: bool
    decode: bool
    waiting_tokens: int


class CapacityMeter:
    """Watches one pod. `observe` takes every snapshot; `ratio` judges the last window."""

    def __init__(self) -> None:
        self._ticks: deque[_Tick] = deque()
        self._floor = math.inf
        """Least TPOT so far, seconds."""
        self._split: Split | None = None
        self._split_since = -math.inf
        self._late_since: float | None = None
        self._smooth: tuple[float, float] | None = None
        """When, and what, the last ratio was."""

    def observe(self, snapshot: EngineSnapshot) -> None:
        now = snapshot.monotonic_time
        # After a gap nothing is known of the time before: such a tick counts for a second.
        seconds = min(now - self._ticks[-1].at, 1.0) if self._ticks else 1.0
        prefill = snapshot.waiting + snapshot.prefilling > 0
        self._ticks.append(_Tick(now, seconds, prefill, snapshot.decoding > 0, snapshot.waiting_tokens))
        while self._ticks[0].at < now - LONGEST:
            self._ticks.popleft()
        self._floor = min([self._floor, *_tpots(snapshot.finished)])

    def ratio(
        self, evidence: Evidence, slo: SLO, split: Split, reach: Iterable[Split], estimate: Estimate, now: float
    ) -> float | None:
        """None until the pod has been watched for `SHORTEST` seconds. Smoothed: a burst is no reason for a pod."""
        load = self.load(evidence, slo, split, reach, estimate, now)
        if load is None:
            self._smooth = None
            return None
        ratio = utilization_ratio(load)
        if self._smooth is not None:
            at, before = self._smooth
            ratio += (before - ratio) * math.exp((at - now) / (SMOOTHING * _window(slo)))
        self._smooth = (now, ratio)
        return ratio

    def load(
        self, evidence: Evidence, slo: SLO, split: Split, reach: Iterable[Split], estimate: Estimate, now: float
    ) -> Load | None:
        if split != self._split:
            self._split_since = now if self._split else -math.inf
            self._split, self._late_since = split, None
        since = now - _window(slo)
        ticks = [tick for tick in self._ticks if tick.at >= since]
        watched = sum(tick.seconds for tick in ticks)
        if watched < SHORTEST - 1:
            return None
        pressure = _pressures(evidence, slo, since, self._split_since, now)
        late = max(pressure.values(), default=0.0) > 1
        self._late_since = None if not late else now if self._late_since is None else self._late_since
        if self._late_since is not None and now - self._late_since <= MEND_SECONDS:
            pressure = _mended(pressure, split, reach, estimate)
        arrived = sum(a.prompt_tokens for a in evidence.arrivals if a.at >= ticks[0].at)
        tpots = _tpots(r for r in evidence.finished if r.finished_at >= since)
        decoding = 1 - self._floor / fmean(tpots) if tpots else 0.0
        target = (slo.ttft_milliseconds or math.inf) / 1000
        return Load(
            prefill=_part(ticks, watched, lambda tick: tick.prefill) * _growth(ticks, arrived),
            decode=_part(ticks, watched, lambda tick: tick.decode) * decoding,
            ttft_pressure=pressure.get("ttft", 0.0),
            tpot_pressure=pressure.get("tpot", 0.0),
            overdue=evidence.waiting > 0 and evidence.oldest_wait_seconds > target,
        )


def _window(slo: SLO) -> float:
    """Seconds."""
    return min(max(float(slo.window_seconds), SHORTEST), LONGEST)


def splits_in_reach(bounds: Bounds, grid: Grid = Grid()) -> tuple[Split, ...]:  # noqa: B008  it is frozen
    """The splits of the grid within the bounds."""
    x = grid.within(bounds.min_prefill_percent, bounds.max_prefill_percent)
    y = grid.within(bounds.min_decode_percent, bounds.max_decode_percent)
    return tuple(Split(prefill=a, decode=b) for a in x for b in y)


def _part(ticks: list[_Tick], watched: float, busy: Callable[[_Tick], bool]) -> float:
    return sum(tick.seconds for tick in ticks if busy(tick)) / watched


def _growth(ticks: list[_Tick], arrived: int) -> float:
    """Arrived over served prompt tokens."""
    if arrived == 0:
        return 0.0
    served = arrived - (ticks[-1].waiting_tokens - ticks[0].waiting_tokens)
    return arrived / max(float(served), arrived / MOST_GROWTH)


def _tpots(requests: Iterable[FinishedRequest]) -> list[float]:
    return [r.tpot_seconds for r in requests if r.tpot_seconds and r.output_tokens >= FLOOR_TOKENS]


def _pressures(evidence: Evidence, slo: SLO, since: float, split_since: float, now: float) -> dict[Metric, float]:
    """Latency over target, at the SLO's percentile, of what the present split has served in the window."""
    samples: dict[Metric, Sample] = {}
    if slo.ttft_milliseconds is not None:
        target, p = slo.ttft_milliseconds / 1000, slo.percentile
        samples["ttft"] = ttft_sample(evidence, target, p, since=since, split_since=split_since, now=now)
    if slo.tpot_milliseconds is not None:
        target, p = slo.tpot_milliseconds / 1000, slo.percentile
        samples["tpot"] = tpot_sample(evidence, target, p, since=since, split_since=split_since)
    return {metric: one.observed / one.target for metric, one in samples.items() if one.observed is not None}


def _mended(
    pressure: dict[Metric, float], split: Split, reach: Iterable[Split], estimate: Estimate
) -> dict[Metric, float]:
    """The pressures at the split in reach whose larger one is least, if that is below 1: none is then above MENDABLE
    for its own sake, for an estimate is no proof."""

    def at(to: Split) -> dict[Metric, float]:
        return {
            metric: value if to == split else estimate(metric, value, split, to) for metric, value in pressure.items()
        }

    best = min((at(to) for to in (split, *reach)), key=lambda found: max(found.values()))
    if max(best.values()) >= 1:
        return pressure
    return {metric: max(value, min(pressure[metric], MENDABLE)) for metric, value in best.items()}
