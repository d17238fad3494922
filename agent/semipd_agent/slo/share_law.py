"""How a share slows a phase that may not leave its part of a device: time(share) / time(whole) = a + b / share. Pure.

The profile's curve is a guess. Under one share contention and the law cannot be told apart; how slow-downs differ
between two shares is the law's alone, for contention is in both. So the slope is fitted once two shares were seen, to
what steps beside the other phase took over what they would have taken alone. It knows no policy and no cost: the
caller says what steps cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from semipd_engine.contract import StepTimes

KEPT_SECONDS = 60.0
"""Of steps under one share; more push out older ones."""
PRIOR_SECONDS = 5.0
"""The profile's slope counts as so many seconds."""
FIT_SECONDS = 5.0
"""A slope is fitted anew after so many more."""
SLOPES = tuple(k / 50 for k in range(1, 51))


@dataclass(frozen=True)
class Curve:
    """time(share) / time(whole) = a + b / share."""

    a: float
    b: float

    def speed(self, share: float) -> float:
        return (self.a + self.b) / (self.a + self.b / max(share, 0.02))


@dataclass(frozen=True)
class Under:
    """Sums over steps that ran beside the other phase for most of their time, under one share."""

    steps: float = 0.0
    tokens: float = 0.0
    context: float = 0.0
    alone: float = 0.0
    shared: float = 0.0
    """Seconds."""

    def added(self, d: StepTimes) -> Under:
        keep = min(1.0, KEPT_SECONDS / (self.shared + d.shared_seconds))
        return Under(
            keep * self.steps + d.steps,
            keep * self.tokens + d.tokens,
            keep * self.context + d.context_tokens,
            keep * self.alone + d.alone_seconds,
            keep * self.shared + d.shared_seconds,
        )


@dataclass(frozen=True)
class SharesSeen:
    """Of one phase."""

    under: dict[int, Under] = field(default_factory=dict)
    """By the share, percent."""
    curve: Curve | None = None
    """None: the profile's."""
    fresh: float = 0.0
    """Seconds since it was fitted."""

    def added(self, share: float, d: StepTimes) -> SharesSeen:
        if d.shared_seconds <= d.alone_seconds:
            return self
        percent = round(100 * share)
        under = self.under | {percent: self.under.get(percent, Under()).added(d)}
        return replace(self, under=under, fresh=self.fresh + d.shared_seconds)

    @property
    def seconds(self) -> float:
        """Of steps that were seen beside the other phase, as far as they are kept."""
        return sum(one.shared for one in self.under.values())

    @property
    def due(self) -> bool:
        return self.fresh >= FIT_SECONDS and len(self.under) > 1

    def fitted(self, costs_at: Callable[[float], tuple[float, float, float]], believed: Curve) -> SharesSeen:
        """`costs_at`: seconds of a step of that size at the whole device, for each step, token and position."""
        seen = list[tuple[float, float, float]]()
        for percent, one in self.under.items():
            costs = costs_at(one.tokens / one.steps if one.steps else 0.0)
            beside = costs[0] * one.steps + costs[1] * one.tokens + costs[2] * one.context - one.alone
            if beside > 0.1 * one.shared:  # else the costs are not known yet
                seen.append((percent / 100, one.shared, math.log(one.shared / beside)))
        slope = _slope(seen, believed.b / (believed.a + believed.b)) if len(seen) > 1 else None
        return replace(self, curve=Curve(1 - slope, slope) if slope is not None else None, fresh=0.0)


def _slope(seen: list[tuple[float, float, float]], believed: float) -> float:
    """Least squares of logarithms; `seen`: share, seconds, logarithm of the slow-down. What all have in common is
    contention."""
    total = sum(seconds for _, seconds, _ in seen)

    def error(slope: float) -> float:
        off = [(seconds, slower - math.log(1 - slope + slope / share)) for share, seconds, slower in seen]
        contention = sum(seconds * v for seconds, v in off) / total
        far = math.log((1 + slope) / (1 + believed))
        return sum(seconds * (v - contention) ** 2 for seconds, v in off) + PRIOR_SECONDS * far * far

    return min(SLOPES, key=lambda slope: (error(slope), abs(slope - believed)))
