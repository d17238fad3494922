"""What a window proves about one target: misses, percentile, and whether the miss rate is beyond chance. Pure.

A percentile of ten samples is noise. The target counts as failed when as many misses as were seen would be rarer than
1 - CONFIDENCE in a stream that just meets it (binomial tail): 4 misses of 10, 6 of 20, 11 of 50 at the 90th percentile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from semipd_agent.slo.window import Evidence, percentile
from semipd_engine.contract import FinishedRequest

CONFIDENCE = 0.999


@dataclass(frozen=True)
class Sample:
    """Samples of one metric under one split, in seconds."""

    values: tuple[float, ...]
    target: float
    p: float
    """The percentile that must be at or below the target."""
    confidence: float = CONFIDENCE

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def misses(self) -> int:
        return sum(v > self.target for v in self.values)

    @property
    def observed(self) -> float | None:
        return percentile(self.values, self.p) if self.values else None

    @property
    def failed(self) -> bool:
        """More misses than chance allows."""
        return self.misses > 0 and tail(self.misses, self.n, 1 - self.p / 100) <= 1 - self.confidence


def tail(k: int, n: int, q: float) -> float:
    """P(Binomial(n, q) >= k), 0 < q < 1. By logarithms: the coefficients of a thousand samples are no floats."""

    def log_coefficient(i: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)

    return 1 - sum(math.exp(log_coefficient(i) + i * math.log(q) + (n - i) * math.log1p(-q)) for i in range(k))


def received_at(r: FinishedRequest) -> float:
    return r.received_at or _first_token_at(r) - (r.ttft_seconds or 0.0)


def _first_token_at(r: FinishedRequest) -> float:
    return r.finished_at - (r.tpot_seconds or 0.0) * max(0, r.output_tokens - 1)


def ttft_sample(evidence: Evidence, target: float, p: float, *, since: float, split_since: float, now: float) -> Sample:
    """TTFT of requests received under the present split that finished after `since`, and of those that wait too long.

    A request that has waited longer than the target already is a miss, known before its first token; one that has not
    is undecided and left out.
    """
    done = [
        r.ttft_seconds
        for r in evidence.finished
        if r.ttft_seconds is not None and r.finished_at >= since and received_at(r) >= split_since
    ]
    ages = [now - at for at in evidence.waiting if at >= split_since]
    return Sample((*done, *(age for age in ages if age > target)), target, p)


def tpot_sample(evidence: Evidence, target: float, p: float, *, since: float, split_since: float) -> Sample:
    """TPOT of requests that finished after `since` and decoded for the greater part under the present split."""
    done = [
        r.tpot_seconds
        for r in evidence.finished
        if r.tpot_seconds is not None
        and r.finished_at >= since
        and (r.finished_at + _first_token_at(r)) / 2 >= split_since
    ]
    return Sample(tuple(done), target, p)


@dataclass(frozen=True)
class Demand:
    """Tokens asked of one phase in a window, with the variance of that sum for independent requests."""

    tokens: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Demand:
        return cls(float(sum(sizes)), float(sum(s * s for s in sizes)))

    def clearly_below(self, reference: Demand, ratio: float, z: float) -> bool:
        """At most `ratio` of the reference, and by at least `z` standard deviations."""
        deviation = math.sqrt(self.variance + reference.variance)
        return self.tokens <= ratio * reference.tokens and reference.tokens - self.tokens >= z * deviation


class RunningMean:
    """Mean demand over the ticks so far."""

    def __init__(self) -> None:
        self._n = 0
        self._mean = Demand()

    def add(self, demand: Demand) -> Demand:
        self._n += 1
        old = self._mean
        self._mean = Demand(
            old.tokens + (demand.tokens - old.tokens) / self._n,
            old.variance + (demand.variance - old.variance) / self._n,
        )
        return self._mean
