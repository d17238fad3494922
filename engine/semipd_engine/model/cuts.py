"""Cuts a list of stages into pieces of bounded time, which the pacer may interleave with the other phase's.

Where a cut falls is decided by tables alone, fixed before the first step: nothing is measured or learnt, so a plan is
computed in the same pieces wherever its budgets are the same. (With compiled kernels a row's bits do not depend on the
cuts at all.) Knows stages and their costs; knows no layer, no thread and no peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semipd_engine.model.stage import Stage, Step, Work
from semipd_engine.pacing.quantum import Pacer


@dataclass(frozen=True)
class Rates:
    """How fast kernels are on one core."""

    read: float
    """Bytes per second."""
    products: float
    """Multiply-adds of matrix products per second, at many rows."""
    scores: float
    """Multiply-adds of attention per second."""

    def seconds(self, work: Work) -> float:
        return max(work.read / self.read, work.products / self.products + work.scores / self.scores)


RATES: Mapping[str, Rates] = {
    "reference": Rates(4e9, 4e10, 4e9),
    "avx2": Rates(8e9, 2.5e10, 5e9),
    "avx512": Rates(8e9, 5e10, 1e10),
    "avx512_bf16": Rates(8e9, 1.2e11, 1e10),
    "amx": Rates(8e9, 4e11, 1e10),
}
"""By the kernels' name. Cautious: a piece may take less than its budget, seldom more."""
FASTEST = Rates(1e15, 1e15, 1e15)
"""Of kernels that are not paced."""


def run_stages(stages: Sequence[Stage], step: Step, pacer: Pacer, rates: Rates) -> None:
    """All stages, in order, in as many quanta as they need."""
    at, unit = 0, 0
    while at < len(stages):
        with pacer.quantum() as left:
            fresh = True  # a quantum does one unit at least
            while at < len(stages):
                stage = stages[at]
                units = stage.units(step)
                seconds = rates.seconds(stage.work(step)) / max(1, units)
                count = units - unit
                if count * seconds > left:
                    count = max(int(left / seconds), 1 if fresh else 0)
                    if count == 0:
                        break
                stage.run(step, unit, unit + count)
                fresh, left, unit = False, left - count * seconds, unit + count
                if unit == units:
                    at, unit = at + 1, 0
