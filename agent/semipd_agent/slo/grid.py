"""The shares that a policy may choose from: steps of some points, or the rungs that a device has. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    rungs: tuple[int, ...] = ()
    """Percent, ascending; empty: every percent can be expressed."""
    step: int = 10
    """Points of one step where there are no rungs."""

    def up(self, share: int, highest: int) -> int | None:
        """One step above `share`; None where that passes `highest`."""
        higher = [rung for rung in self.rungs if rung > self._nearest(share)] if self.rungs else [share + self.step]
        return higher[0] if higher and higher[0] <= highest else None

    def down(self, share: int, lowest: int) -> int | None:
        """One step below `share`; None where that falls below `lowest`."""
        lower = [rung for rung in self.rungs if rung < self._nearest(share)] if self.rungs else [share - self.step]
        return lower[-1] if lower and lower[-1] >= lowest else None

    def bounded(self, share: int, lowest: int, highest: int) -> int:
        """The nearest share of the grid within the bounds; where they hold none, the nearest at all."""
        if not self.rungs:
            return min(max(share, lowest), highest)
        inside = [rung for rung in self.rungs if lowest <= rung <= highest]
        return min(inside or self.rungs, key=lambda rung: (abs(rung - share), -rung))

    def within(self, lowest: int, highest: int) -> tuple[int, ...]:
        """The shares within the bounds, from the lowest on; where they hold no rung, the nearest one."""
        if not self.rungs:
            return tuple(range(lowest, highest + 1, self.step))
        inside = tuple(rung for rung in self.rungs if lowest <= rung <= highest)
        return inside or (self.bounded(lowest, lowest, highest),)

    def _nearest(self, share: int) -> int:
        return self.bounded(share, 0, 100)
