"""A pod in virtual time: the simulator's engine and the agent's pilot, which moves its split and says how full it is.

The pilot knows the device's law and nothing else of the oracle: it starts from the assumed profile, as an agent without
a measured one does.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from semipd_agent.contract import SLO, Bounds, Policy
from semipd_agent.decisions import DecisionLog
from semipd_agent.pilot import Leeway, Pilot
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.step_model import ShareLaw
from semipd_agent.tasks import Faults
from semipd_cli.simulator.engine import Arrival, Size, VirtualEngine
from semipd_cli.simulator.oracle import ORACLES
from semipd_cli.simulator.policies import RUNGS
from semipd_engine.contract import Split


class VirtualClock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)


def grid_of(oracle: str) -> Grid:
    return Grid() if oracle.endswith("cpu") else Grid(RUNGS)


class Pod:
    def __init__(
        self,
        slo: SLO,
        oracle: str,
        size: Size,
        arrivals: Iterable[Arrival] = (),
        *,
        split: Split | None = None,
        now: float = 0.0,
        seed: int = 0,
    ) -> None:
        """`split`: where it starts, and what is configured. `now`: when it is born."""
        self.split = split or Split()
        self.engine = VirtualEngine(arrivals, ORACLES[oracle], size, seed, self.split)
        self.engine.now = now
        self._slo, self._grid, self._clock = slo, grid_of(oracle), VirtualClock(now)
        self._cursor = 0
        faults = Faults(self._clock)
        self._faults = faults
        self.pilot = Pilot(faults, DecisionLog(), slo)
        self.pilot.runs_on(ShareLaw.PACED if oracle.endswith("cpu") else ShareLaw.SPATIAL)
        self.pilot.follow(Policy.MODEL_PREDICTIVE, slo, self._grid, self.split, since=now, mixes=False)

    def tick(self, now: float) -> None:
        """To the second `now`. Raises RuntimeError where a part of the pilot failed: a study of it is void then."""
        self.engine.run_until(now)
        self._clock.now = now
        o = self.engine.observe(self._cursor)
        self._cursor = o.next_cursor
        self.pilot.take(o, Bounds())
        leeway = Leeway(
            self._slo, self.split, Bounds(), self._grid, mixes=False, settled=self.engine.split == self.split
        )
        verdict = self.pilot.decided(o, leeway, now)
        if failed := self._faults.report():
            raise RuntimeError(f"{failed[0].part}: {failed[0].message}")
        if verdict is not None and verdict.move is not None and verdict.move.to != self.split:
            self.split = verdict.move.to
            self.engine.switch(self.split)

    @property
    def ratio(self) -> float | None:
        return self.pilot.utilization_ratio
