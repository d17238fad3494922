"""Two ordinary regressions' worth of algebra: normal equations of step times, and what they say. Pure.

It knows the three terms of a step's work and two kinds of seconds, and no phase, profile or policy.
"""

from __future__ import annotations

from dataclasses import dataclass

Three = tuple[float, float, float]

SCALE = (0.3, 3.0)
"""How far a measured profile may be corrected online."""


@dataclass(frozen=True)
class Row:
    """The equation of some steps of one kind, relative to what the profile says."""

    left: Three
    alone: float
    shared: float
    """Seconds, as in `Equations`."""
    steps: int
    part: float
    """Of their time (0-1) that they ran alone."""


@dataclass(frozen=True)
class Equations:
    """Normal equations of steps in units of the profile's three terms. Seconds are kept apart by whether the other
    phase was busy; those beside it are the share's: what they took times the speed that the share alone would give."""

    a: tuple[Three, Three, Three] = ((0.0, 0.0, 0.0),) * 3
    alone: Three = (0.0, 0.0, 0.0)
    shared: Three = (0.0, 0.0, 0.0)
    weight: float = 0.0

    def added(self, row: Row, weight: float) -> Equations:
        x, alone, shared = row.left, weight * row.alone, weight * row.shared
        return Equations(
            tuple(tuple(v + weight * x[i] * x[j] for j, v in enumerate(line)) for i, line in enumerate(self.a)),  # type: ignore[arg-type]
            tuple(v + alone * x[i] for i, v in enumerate(self.alone)),  # type: ignore[arg-type]
            tuple(v + shared * x[i] for i, v in enumerate(self.shared)),  # type: ignore[arg-type]
            self.weight + weight,
        )

    def times(self, factor: float) -> Equations:
        return Equations(
            tuple(tuple(v * factor for v in line) for line in self.a),  # type: ignore[arg-type]
            tuple(v * factor for v in self.alone),  # type: ignore[arg-type]
            tuple(v * factor for v in self.shared),  # type: ignore[arg-type]
            self.weight * factor,
        )

    def __add__(self, other: Equations) -> Equations:
        return Equations(
            tuple(tuple(map(sum, zip(x, y, strict=True))) for x, y in zip(self.a, other.a, strict=True)),  # type: ignore[arg-type]
            tuple(map(sum, zip(self.alone, other.alone, strict=True))),  # type: ignore[arg-type]
            tuple(map(sum, zip(self.shared, other.shared, strict=True))),  # type: ignore[arg-type]
            self.weight + other.weight,
        )

    def work(self, contention: float) -> Three:
        """The right side: seconds at the whole device alone."""
        first, second, third = (a + s / contention for a, s in zip(self.alone, self.shared, strict=True))
        return first, second, third

    def scale(self, contention: float) -> float:
        """The one factor on all terms that explains the sums best."""
        return max(sum(self.work(contention)) / max(sum(map(sum, self.a)), 1e-12), 1e-6)


def ridge(e: Equations, contention: float, measured: bool) -> Three:
    """The three terms' factors, near (s, s, s), s being the common scale that explains the sums best."""
    s = e.scale(contention)
    s = min(max(s, SCALE[0]), SCALE[1]) if measured else s
    rho = (0.3 if measured else 0.001) * max(sum(e.a[i][i] for i in range(3)) / 3, 1e-12)
    a = [[e.a[i][j] + (rho if i == j else 0.0) for j in range(3)] for i in range(3)]
    low, high = (0.3 * s, 3.0 * s) if measured else (0.05 * s, 20.0 * s)
    first, second, third = (min(max(v, low), high) for v in solved(a, [v + rho * s for v in e.work(contention)]))
    return first, second, third


def solved(a: list[list[float]], b: list[float]) -> list[float]:
    """Gaussian elimination of positive definite equations."""
    n = len(b)
    for i in range(n):
        for j in range(i + 1, n):
            factor = a[j][i] / a[i][i]
            for k in range(i, n):
                a[j][k] -= factor * a[i][k]
            b[j] -= factor * b[i]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (b[i] - sum(a[i][k] * x[k] for k in range(i + 1, n))) / a[i][i]
    return x
