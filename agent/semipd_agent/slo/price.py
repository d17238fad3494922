"""What a move is worth less where a worker must be prepared for it first. Pure.

A preparation is paid once, and a load that has lasted for long is taken to last for as long again: its price is spread
over that time, or over the horizon where that is longer. But not while a long queue waits: what a queue gains is once,
too, and in the same minute.
"""

from __future__ import annotations

from dataclasses import dataclass

from semipd_agent.slo.future import Future, Setting
from semipd_engine.contract import Split


@dataclass(frozen=True)
class Price:
    setting: Setting
    lasts: float
    """Seconds over which it is spread."""

    @classmethod
    def of(cls, future: Future) -> Price:
        s, load, c = future.setting, future.load, future.setting.constants
        lasted = future.o.at - max(load.since, load.regime_since)
        return cls(s, c.horizon if future.waiting >= c.long_queue else max(c.horizon, lasted))

    def left(self, split: Split) -> float:
        """Part of a gain, and of its error: those who come before the worker is ready are served as now."""
        return self.lasts / (self.lasts + self.setting.delay(split))

    def worth(self, split: Split, value: float, stays: float) -> float:
        """`value` less the price, beside `stays`, what the split in force is worth."""
        if not self.setting.delay(split):
            return value
        c = self.setting.constants
        return stays + (value - stays) * self.left(split) - c.cold_cost * c.horizon / self.lasts
