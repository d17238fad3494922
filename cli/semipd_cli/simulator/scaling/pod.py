"""A pod in virtual time: the simulated engine and the agent's pilot, which moves its split and says how full it is.

The pilot knows the device's law and nothing else of the oracle: it starts from the assumed profile, as an agent without
a measured one does. It knows no other pod and no autoscaler.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from semipd_agent.contract import SLO, Bounds, Policy
from semipd_agent.decisions import DecisionLog
from semipd_agent.pilot import Leeway, Pilot
from semipd_agent.slo.step_model import ShareLaw
from semipd_agent.slo.window import percentile
from semipd_agent.tasks import Faults
from semipd_cli.simulator.engine import Arrival, Size, VirtualEngine
from semipd_cli.simulator.oracle import ORACLES
from semipd_cli.simulator.policies import grid_of
from semipd_engine.contract import Observation, Split

LEAST_SAMPLES = 5
"""Fewer latencies are no percentile; as in the agent's report."""


class VirtualClock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)


@dataclass(frozen=True)
class Exported:
    """What autoscalers may read of one pod; None: it has no such series yet."""

    utilization: float | None
    """semipd_utilization_ratio."""
    pressure: float | None
    """The larger semipd_slo_pressure_ratio: latency over target, at the SLO's percentile, of the SLO's window."""
    waiting: int
    """vllm:num_requests_waiting."""
    arrivals: int = 0
    """Requests that were asked for, as the agent's report counts them."""
    rate: float = 0.0
    """Requests a second that `utilization` speaks of."""


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
        moves: bool = True,
    ) -> None:
        """`split`: where it starts, and what is configured. `now`: when it is born. `moves`: Auto, else the split
        stays."""
        self.split = split or Split()
        self.moved = 0
        self.engine = VirtualEngine(arrivals, ORACLES[oracle], size, seed, self.split)
        self.engine.now = now
        self._slo, self._grid, self._clock = slo, grid_of(oracle), VirtualClock(now)
        self._cursor = 0
        self._seen: Observation | None = None
        faults = Faults(self._clock)
        self._faults = faults
        self.pilot = Pilot(faults, DecisionLog(), slo)
        self.pilot.runs_on(ShareLaw.PACED if oracle.endswith("cpu") else ShareLaw.SPATIAL)
        policy = Policy.MODEL_PREDICTIVE if moves else None
        self.pilot.follow(policy, slo, self._grid, self.split, since=now, mixes=False)

    def tick(self, now: float) -> None:
        """To the second `now`. Raises RuntimeError where a part of the pilot failed: a study of it is void then."""
        self.engine.run_until(now)
        self._clock.now = now
        o = self._seen = self.engine.observe(self._cursor)
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
            self.moved += 1
            self.engine.switch(self.split)

    @property
    def ratio(self) -> float | None:
        return self.pilot.utilization_ratio

    def exported(self) -> Exported:
        """As of the last `tick`."""
        now, slo = self._clock.now, self._slo
        seen = self.pilot.attained(slo, self._seen, now)
        found = [
            1000 * percentile(latencies, slo.percentile) / target
            for latencies, target in ((seen.ttft, slo.ttft_milliseconds), (seen.tpot, slo.tpot_milliseconds))
            if target and len(latencies) >= LEAST_SAMPLES
        ]
        waiting = len(self._seen.queue) if self._seen else 0
        return Exported(self.ratio, max(found, default=None), waiting, self.pilot.arrivals, self.pilot.utilization_rate)
