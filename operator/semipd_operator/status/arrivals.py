"""By how much a service's requests grow until a pod that is ordered now serves. Pure: it knows no clock and no pod.

Pods count what is asked of them; the trend is that of the service's sum, for the rate of one pod falls where another is
added and rises where one is taken away. It raises what autoscalers are told, and never lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BUCKET_SECONDS = 15.0
WINDOW_SECONDS = 300.0
"""What a trend is taken from, and as far ahead as it is believed."""
LEAST_SECONDS, LEAST_REQUESTS = 150.0, 60.0
"""Of shorter times and of fewer requests nothing is said."""
DOUBT = 1.0
"""Standard errors that are not believed."""
STEP = 12.0
"""Variances of one count by which a step must leave less than a line to be told instead of it."""
STEP_COUNTS = 3
"""On either side of a step."""
MOST = 2.0
SET_BACK_SECONDS = 2.0
"""By which a clock may be, as clocks are that keep to others."""


@dataclass(frozen=True)
class Arrivals:
    """What is known of one service."""

    counts: Mapping[int, float] = field(default_factory=dict)
    """Requests by the number of their `BUCKET_SECONDS`."""
    told: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Of each pod: when it told its counter last, and what it was."""
    since: float = math.inf
    """Since when all pods that tell at all are counted."""

    def advanced(self, now: float, told: Mapping[str, tuple[float, int | None]]) -> Arrivals:
        """After one look at the pods. `now`: seconds of any clock. `told`: of each pod, when it told its counter last,
        and what it was; who is silent is not in it, and what came meanwhile is spread over that time once it speaks
        again. None: an agent that has no such counter: there is no sum with it, so all begins anew. So it does with a
        clock that was set back; by a little, and nobody is counted until it has caught up."""
        if any(at > now + SET_BACK_SECONDS for at, _ in self.told.values()):
            return Arrivals().advanced(now, told)
        if any(counter is None for _, counter in told.values()):
            return Arrivals()
        counts, latest = dict(self.counts), dict(self.told)
        for pod, (at, counter) in told.items():
            assert counter is not None
            if (last := latest.get(pod)) is None:
                latest[pod] = at, counter  # who is seen for the first time may have served others' requests for long
            elif at > last[0]:
                _spread(counts, last[0], at, counter - last[1] if counter >= last[1] else counter)
                latest[pod] = at, counter
        oldest = int((now - WINDOW_SECONDS) // BUCKET_SECONDS)
        return Arrivals(
            {number: count for number, count in counts.items() if number >= oldest},
            {pod: last for pod, last in latest.items() if last[0] >= now - WINDOW_SECONDS},
            min(self.since, now) if latest else math.inf,
        )

    def growth(self, now: float, ahead: float, told: float) -> float:
        """Requests a second that are expected in `ahead` seconds, over the `told` ones, which the pods' ratios speak of
        now; at least 1 and at most `MOST`."""
        last = int(now // BUCKET_SECONDS)  # it is not over
        first = max(last - int(WINDOW_SECONDS // BUCKET_SECONDS), _first(self.since))
        counts = [self.counts.get(number, 0.0) for number in range(first, last)]
        if told <= 0 or len(counts) * BUCKET_SECONDS < LEAST_SECONDS or sum(counts) < LEAST_REQUESTS:
            return 1.0
        slope, doubt = trend(counts)
        sure = slope - DOUBT * doubt
        if sure <= 0:
            return 1.0
        expected = step(counts)  # nothing goes on after one
        if expected is None:
            then = (now + min(ahead, WINDOW_SECONDS)) / BUCKET_SECONDS
            expected = sum(counts) / len(counts) + sure * (then - (first + last) / 2)
        return min(MOST, max(1.0, expected / BUCKET_SECONDS / told))


def trend(counts: Sequence[float]) -> tuple[float, float]:
    """Slope of the least squares' line, per place, and its standard error: by what is left beside the line, or by
    Poisson's law where that is more."""
    n = len(counts)
    mean, middle = sum(counts) / n, (n - 1) / 2
    squares = n * (n * n - 1) / 12
    slope = sum((k - middle) * count for k, count in enumerate(counts)) / squares
    left = sum((count - mean - slope * (k - middle)) ** 2 for k, count in enumerate(counts)) / (n - 2)
    return slope, math.sqrt(max(left, mean) / squares)


def step(counts: Sequence[float]) -> float | None:
    """What one step leads to, less its standard error, where it tells these counts clearly better than a straight line
    does; None: it does not."""
    n = len(counts)
    slope, _ = trend(counts)
    mean, middle = sum(counts) / n, (n - 1) / 2
    beside_line = sum((count - mean - slope * (k - middle)) ** 2 for k, count in enumerate(counts))
    beside_step, at = min((_left(counts[:k]) + _left(counts[k:]), k) for k in range(STEP_COUNTS, n - STEP_COUNTS + 1))
    variance = max(mean, beside_step / (n - 3))
    if beside_line - beside_step < STEP * variance:
        return None
    return sum(counts[at:]) / (n - at) - DOUBT * math.sqrt(variance / (n - at))


def _left(counts: Sequence[float]) -> float:
    """Squares beside the mean."""
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 for count in counts)


def _first(since: float) -> int:
    """The first bucket that was counted from its beginning on."""
    return math.ceil(since / BUCKET_SECONDS) if math.isfinite(since) else 1 << 62


def _spread(counts: dict[int, float], since: float, until: float, came: int) -> None:
    """Evenly over the time in which they came."""
    for number in range(int(since // BUCKET_SECONDS), int(until // BUCKET_SECONDS) + 1):
        begin, end = max(since, number * BUCKET_SECONDS), min(until, (number + 1) * BUCKET_SECONDS)
        if end > begin:
            counts[number] = counts.get(number, 0.0) + came * (end - begin) / (until - since)
