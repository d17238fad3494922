"""A measured table that is read between its points, and the two fits that make one. Pure.

It knows no phase, no profile and no device: numbers in, a piecewise linear function out. Plain Python: the agent
has no numpy, and this is some tens of points, once for each profile.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from semipd_agent.slo.equations import solved

APART = 1.2
"""Sizes that are closer than by this factor are one knot."""
PRIOR_STEPS = 8.0
"""What is believed of a factor counts as so many steps, a sixth of what a point of the sweep has: these come one after
the other, and what disturbs one of them disturbs most ..."""
PRIOR_PART = 1.0
"""... and of the context as much as what was seen: a small part of most steps, it takes their noise for its own."""
LEAST, MOST = 0.1, 10.0
"""Of a factor: what is beyond was disturbed."""


@dataclass(frozen=True)
class Knots:
    """Linear between its points, level beyond them; without any it is 1 everywhere."""

    at: tuple[float, ...] = ()
    """Increasing."""
    values: tuple[float, ...] = ()

    def __call__(self, x: float) -> float:
        at, values = self.at, self.values
        if not at:
            return 1.0
        right = bisect_right(at, x)
        if right == 0 or right == len(at):
            return values[0 if right == 0 else -1]
        part = (x - at[right - 1]) / (at[right] - at[right - 1])
        return values[right - 1] + part * (values[right] - values[right - 1])

    def weights(self, x: float) -> list[float]:
        """Of each value in the function at `x`."""
        return [Knots(self.at, tuple(float(i == j) for j in range(len(self.at))))(x) for i in range(len(self.at))]


class Steps(NamedTuple):
    """Of one kind, and what a line says of them."""

    number: int
    size: float
    """Of the mean one."""
    base: float
    context: float
    """The line's two parts, relative to the whole."""
    took: float
    """Over what the line says."""


def bent(seen: Sequence[Steps]) -> tuple[Knots, float]:
    """Factors on the line's base by size, and the one on its context: least squares of relative errors. First as if
    the base were a line, for what the line says of the context may be off by ten times, where that is little of most
    steps; then bent from there."""
    flat, context = _fitted(seen, Knots((1.0,)), (1.0, 1.0))
    return _fitted(seen, Knots(_sizes(seen)), (flat.values[0], context))


def _fitted(seen: Sequence[Steps], knots: Knots, near: tuple[float, float]) -> tuple[Knots, float]:
    """`near`: what is believed of factors and context."""
    n = len(knots.at) + 1
    a, b = [[0.0] * n for _ in range(n)], [0.0] * n
    for one in seen:
        x = [one.base * weight for weight in knots.weights(one.size)] + [one.context]
        for i in range(n):
            b[i] += one.number * x[i] * one.took
            for j in range(n):
                a[i][j] += one.number * x[i] * x[j]
    for i in range(n):
        prior, believed = (PRIOR_STEPS, near[0]) if i < n - 1 else (PRIOR_PART * a[i][i] + 1e-9, near[1])
        a[i][i] += prior
        b[i] += prior * believed
    *factors, context = solved(a, b)
    return Knots(knots.at, tuple(min(max(one, LEAST), MOST) for one in factors)), max(0.0, context)


def _sizes(seen: Sequence[Steps]) -> tuple[float, ...]:
    """Where there are knots: the mean of each group of sizes that are close to one another."""
    groups: list[list[Steps]] = []
    for one in sorted(seen, key=lambda one: one.size):
        if groups and one.size <= APART * groups[-1][0].size:
            groups[-1].append(one)
        else:
            groups.append([one])
    return tuple(sum(s.number * s.size for s in group) / sum(s.number for s in group) for group in groups)


def rising(points: Sequence[tuple[float, float, float]]) -> Knots:
    """Through (x, y, weight), 0 < x < 1, as closely as a function can be that nowhere falls, from (0, 0) to (1, 1): the
    mean at each x, and of neighbours that would fall the mean of both."""
    sums: dict[float, tuple[float, float]] = {}
    for x, y, weight in points:
        total, weights = sums.get(x, (0.0, 0.0))
        sums[x] = total + weight * min(max(y, 0.0), 1.0), weights + weight
    pools: list[tuple[int, float, float]] = []
    """Of how many places, their sum, weight."""
    for _, (total, weight) in sorted(sums.items()):
        pools.append((1, total, weight))
        while len(pools) > 1 and pools[-2][1] * pools[-1][2] > pools[-1][1] * pools[-2][2]:
            (m, one, has), (n, other, adds) = pools[-2:]
            pools[-2:] = [(m + n, one + other, has + adds)]
    values = [total / weight for places, total, weight in pools for _ in range(places)]
    return Knots((0.0, *sorted(sums), 1.0), (0.0, *values, 1.0))
