"""How full a pod is, as one number for autoscaling: 1 / m*, m* the largest multiple of the present load that some
split in reach still serves within the targets. Pure.

It is linear in the load, which a latency is not, and does not depend on the split in force: the window's arrivals are
played faster and faster (`replay`) under every split until none keeps both targets at the SLO's percentile. So the
split acts before replicas do: what another split would mend asks for no pod. Backlogs are left out: a queue left by a
burst is no load. It knows no engine, no device and no replica count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from semipd_agent.contract import SLO
from semipd_agent.slo.feasibility import pressures
from semipd_agent.slo.load import Load, Seen
from semipd_agent.slo.policy import prefill_share
from semipd_agent.slo.replay import Job, Machine, replay
from semipd_engine.contract import Observation, Phase, Split

WINDOW_SECONDS = 120.0
LEAST_SECONDS = 10.0
"""A pod that has been watched for less says nothing."""
LEAST_REQUESTS = 8
"""Below this the replay says too little; the device's work over time is the ratio."""
PLAYED = 450
"""Requests of one replay: a window with fewer is played more than once."""
UNSETTLED = 150
"""Its first ones, a third at most, do not count: it begins with an empty batch, and while answers of 400 tokens are
written to the first of them a hundred more come. With 150 played and 15 of them left out such a load seemed a seventh
smaller than it was."""
PERIOD = 10.0
SMOOTHING = 0.5
"""Weight of a new value."""
LOWEST, HIGHEST = 1 / 16, 16.0
"""Of m."""
PRECISION = 1.05
"""The bisection ends when m* is known to this factor."""


@dataclass(frozen=True)
class Utilization:
    ratio: float | None = None
    """None: not known yet."""
    rate: float = 0.0
    """Requests a second that it speaks of, smoothed alike."""
    at: float = -math.inf
    best: Split | None = None
    """The split that carries most."""

    def advanced(self, o: Observation, load: Load, slo: SLO, splits: Sequence[Split]) -> Utilization:
        """Judge anew where it is time to. `splits`: those in reach, the one in force among them."""
        if o.at - self.at < PERIOD or o.at - load.since < LEAST_SECONDS:
            return self
        ratio, best = measure(o, load, slo, splits, self.ratio)
        window, span, _ = watched(o, load)
        rate = len(window) / span if span > 0 else 0.0
        if self.ratio is not None:
            ratio = self.ratio + SMOOTHING * (ratio - self.ratio)
            rate = self.rate + SMOOTHING * (rate - self.rate)
        return replace(self, ratio=ratio, rate=rate, at=o.at, best=best or self.best)


def watched(o: Observation, load: Load) -> tuple[list[Seen], float, float]:
    """The arrivals that the ratio speaks of, the seconds that they stand for, and since when each one is known."""
    since = max(load.since, o.at - WINDOW_SECONDS, min(load.regime_since, o.at - 2 * LEAST_SECONDS))
    known = max(since, load.known_since)
    window = [one for one in load.seen.values() if known <= one.at <= o.at]
    span = o.at - since
    if known > since:  # of a storm the last ones are known, which stand for all: they come as slowly as all did
        span *= len(window) / max(load.arrived(since, o.at), len(window))
    return window, span, known


def measure(
    o: Observation, load: Load, slo: SLO, splits: Sequence[Split], guess: float | None = None
) -> tuple[float, Split | None]:
    """1 / m* and the split that reaches it, without smoothing. `guess`: what it was before."""
    window, span, known = watched(o, load)
    if len(window) < LEAST_REQUESTS or not load.lengths:
        return _rho(o, load, window, span), None
    turns = max(1, math.ceil(PLAYED / len(window)))
    slower = span / max(o.at - known, 1e-3)
    jobs = [
        load.job(one, turn * span + slower * (one.at - known), o.prefill_chunk_tokens)
        for turn in range(turns)
        for one in window
    ]
    climb = _Climb(jobs, [(split, load.machine(split, o)) for split in splits], slo)
    low, high = LOWEST, HIGHEST
    if guess:  # what was true a moment ago is nearly true now; of a pod without work (0) nothing follows
        near = min(max(1 / guess, 1.01 * LOWEST), HIGHEST / 1.01)
        low, high = (near, min(HIGHEST, 1.5 * near)) if climb.keeps(near) else (max(LOWEST, near / 1.5), near)
        if high > near and climb.keeps(high):
            low, high = high, HIGHEST
        elif low < near and not climb.keeps(low):
            low, high = LOWEST, low
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if climb.keeps(middle) else (low, middle)
    return 1 / math.sqrt(low * high), climb.best


class _Climb:
    """Asks for each multiple of the load whether some split keeps both targets, from the split that did best last: the
    larger pressure has one valley over prefill's share, for TTFT falls with it and TPOT rises. Those without isolation
    stand outside that order, and are asked one by one."""

    def __init__(self, jobs: Sequence[Job], machines: Sequence[tuple[Split, Machine]], slo: SLO) -> None:
        self._jobs, self._slo = jobs, slo
        self._machines = sorted((m for m in machines if not m[0].mixed_tokens), key=lambda m: prefill_share(m[0]))
        self._mixed = [m for m in machines if m[0].mixed_tokens]
        self._at = len(self._machines) // 2
        self.best: Split | None = None

    def keeps(self, times: float) -> bool:
        found: dict[int, float] = {}

        def pressure(k: int) -> float:
            if not 0 <= k < len(self._machines):
                return math.inf
            if k not in found:
                found[k] = asked(self._machines[k][1])
            return found[k]

        jobs = [job._replace(at=job.at / times) for job in self._jobs]
        settled = min(UNSETTLED, len(jobs) // 3)

        def asked(machine: Machine) -> float:
            return max(pressures(replay(machine, jobs)[settled:], self._slo))

        for split, machine in self._mixed:
            if asked(machine) <= 1:
                self.best = split
                return True
        at, stride = self._at, max(1, len(self._machines) // 6)
        while pressure(at) > 1:
            lower = min((at - stride, at + stride), key=pressure)
            if pressure(lower) < pressure(at):
                at = lower
            elif stride > 1:
                stride //= 2
            else:
                self._at = at
                return False
        self._at, self.best = at, self._machines[at][0]
        return True


def _rho(o: Observation, load: Load, window: Sequence[Seen], span: float) -> float:
    """Work that arrived, over time: what a device without a queue would be busy with."""
    step, row, position = load.model.costs(Phase.DECODE, 1)
    work = 0.0
    for one in window:
        job = load.job(one, 0.0, o.prefill_chunk_tokens)
        work += job.work + job.output * (step + row + position * job.context) / max(1, len(window) // 2)
    return min(work / span, 1.0) if span > 0 else 0.0
