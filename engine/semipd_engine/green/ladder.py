"""Which groups of SMs a rung has: prefill's from the front of the split, decode's from its back. Pure.

Both phases look at one line of boundaries: prefill's x % end at the boundary nearest to x, decode's y % begin at the
one nearest to 100 - y. So x + y = 100 leaves no SM over and shares none, below 100 some are nobody's, and above 100
those in the middle are both's. The 100 % rung is the device as it is: no green context, torch's own stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from semipd_engine.contract import GREEN_RUNGS, Phase

WHOLE = 0
"""Number of the 100 % rung in every ladder."""


def parsed(text: str) -> tuple[int, ...]:
    """The percentages below 100 that a worker is to hold, ascending: a rung's number is its place here and 1. Raises
    ValueError."""
    words = text.split(",")
    percents = tuple(int(word) for word in words if word.isdecimal())
    if len(percents) != len(words) or not all(0 < p < 100 for p in percents) or list(percents) != sorted(set(percents)):
        raise ValueError(f"{GREEN_RUNGS}={text}: percentages from 1 to 99, ascending, with commas, as 20,40,60")
    return percents


@dataclass(frozen=True)
class Line:
    """The groups of a device, by their SMs, in the order of the split."""

    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def boundary(self, percent: int) -> int:
        """How many groups lie before the boundary that is nearest to so much of the device."""
        before = list(accumulate(self.sizes, initial=0))
        return min(range(len(before)), key=lambda count: abs(100 * before[count] - percent * self.total))

    def groups(self, phase: Phase, percent: int) -> range:
        """Numbers of the groups."""
        if phase is Phase.PREFILL:
            return range(self.boundary(percent))
        return range(self.boundary(100 - percent), len(self.sizes))

    def sms(self, phase: Phase, percent: int) -> int:
        groups = self.groups(phase, percent)
        return sum(self.sizes[groups.start : groups.stop])

    def coarse(self, percents: Sequence[int]) -> dict[int, str]:
        """Those that this device is too coarse for, and why: a rung has SMs in both phases, more than the one below it
        and fewer than the whole device."""
        lost, below = dict[int, str](), dict.fromkeys(Phase, 0)
        for percent in percents:
            found = {phase: self.sms(phase, percent) for phase in Phase}
            if all(below[phase] < found[phase] < self.total for phase in Phase):
                below = found
            else:
                groups = f"{len(self.sizes)} groups of up to {max(self.sizes, default=0)} SMs"
                lost[percent] = f"{percent} % is no rung of its own in {groups}"
        return lost
