"""Who runs the next step of a phase, and under which limit. Pure.

A phase that is alone has the whole device (L0). A phase without a ready worker of its own rung uses what there is
rather than nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from semipd_engine.contract import Phase
from semipd_engine.core.holder import Holder
from semipd_engine.core.partitions import Partitions, Rung
from semipd_engine.core.worker_pool import WorkerPool


class Route(NamedTuple):
    holder: Holder
    rung: Rung


@dataclass
class Router:
    partitions: Partitions
    pool: WorkerPool

    def next(self, phase: Phase, alone: bool) -> Route | None:
        """Where the phase's next step goes. `alone`: the other phase does nothing meanwhile."""
        for rung in self.partitions.route(phase, alone):
            holder = self.pool.holder(phase, rung)
            if holder is not None and self.pool.is_ready(phase, rung):
                return Route(holder, rung)
        return None

    def holders(self, phase: Phase) -> list[Holder]:
        """The phase's holders, first the one that has its steps while both phases are busy."""
        routed = self.next(phase, alone=False)
        return sorted(self.pool.of(phase), key=lambda holder: routed is None or holder is not routed.holder)
