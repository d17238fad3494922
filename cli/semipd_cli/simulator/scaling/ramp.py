"""A load that grows and falls: any stream of arrivals, its clock bent so that its rate is multiplied over time. Pure.

Requests keep their order, their lengths and their bursts; of a Poisson stream it makes one whose rate follows the ramp.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from semipd_cli.simulator.engine import Arrival
from semipd_cli.simulator.workloads import Workload


@dataclass(frozen=True)
class Ramp:
    """Straight lines between these points: (second, factor), from second 0 on; the last factor holds."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def parse(cls, text: str) -> Ramp:
        """`0:1,600:4`: the rate as it is, and four times as much from second 600 on.

        Raises:
            ValueError: it is no such list.
        """
        try:
            points = tuple((float(at), float(factor)) for at, factor in (p.split(":") for p in text.split(",")))
        except ValueError:
            points = ()
        times = [at for at, _ in points]
        if not points or times[0] != 0 or any(b <= a for a, b in itertools.pairwise(times)):
            raise ValueError(f"{text}: write it as 0:1,600:1,1500:4: seconds from 0 on, ascending, and factors")
        if not all(0 < factor < math.inf and at < math.inf for at, factor in points):
            raise ValueError(f"{text}: factors must be above 0, and all numbers finite")
        return cls(points)

    def factor(self, second: float) -> float:
        k = bisect_right(self.points, (second, math.inf)) - 1
        (at, here), (until, there) = self.points[k], self.points[min(k + 1, len(self.points) - 1)]
        return here if until == at else here + (there - here) * (second - at) / (until - at)

    def load(self, second: float) -> float:
        """The stream's own time that has passed by then: the factor's integral."""
        return self._passed(bisect_right(self.points, (second, math.inf)) - 1, second)

    def when(self, load: float) -> float:
        """The second at which so much of the stream's own time has passed: what undoes `load`."""
        k = bisect_right([self._passed(k, at) for k, (at, _) in enumerate(self.points)], load) - 1
        at, here = self.points[k]
        left = load - self._passed(k, at)
        slope = self._slope(k)
        # here * t + slope / 2 * t^2 = left, in the form that has no difference of near numbers
        return at + 2 * left / (here + math.sqrt(here * here + 2 * slope * left))

    def _passed(self, k: int, second: float) -> float:
        before = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(self.points[: k + 1]))
        at, here = self.points[k]
        return before + (second - at) * (here + self._slope(k) * (second - at) / 2)

    def _slope(self, k: int) -> float:
        if k + 1 >= len(self.points):
            return 0.0
        (at, here), (until, there) = self.points[k], self.points[k + 1]
        return (there - here) / (until - at)

    def bent(self, arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
        return (replace(arrival, at=self.when(arrival.at)) for arrival in arrivals)

    def over(self, workload: Workload) -> Workload:
        """The same, under this ramp."""
        plain = workload.arrivals
        return replace(
            workload,
            name=f"{workload.name} x ramp",
            arrivals=lambda seconds, seed: self.bent(plain(self.load(seconds), seed)),
            stationary=False,
        )
