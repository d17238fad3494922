"""Backends of NVIDIA GPUs: the rungs of MPS as a `Partitioner`. Joins ladder, preflight and `keeper`; decides no split.

``mps``: a rung is the percentage of a worker. ``mps-green``: a stream of one worker for each phase (`green`), under the
same daemon, watched and ended alike.

How a split is proved: each rung's SM count is measured by a probe when the first daemon starts. The plan carries it, so
a worker that sees another number is never ready, and `verify` compares what the routed worker reports. On the 100 %
rung, and where rungs are streams, the number says nothing about MPS; there the daemon's list of clients does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from semipd_agent.children import Children
from semipd_agent.clock import Clock
from semipd_agent.contract import Enforcement, PartitionReason
from semipd_agent.gpu.telemetry import Telemetry
from semipd_agent.gpu.xid import is_hardware
from semipd_agent.partitioner.base import Problem
from semipd_agent.partitioner.mps import green, ladder, preflight
from semipd_agent.partitioner.mps.keeper import Keeper
from semipd_agent.partitioner.mps.ladder import WHOLE, Timing
from semipd_agent.partitioner.mps.preflight import Host
from semipd_agent.partitioner.mps.programs import Programs
from semipd_engine import contract as engine
from semipd_engine.contract import (
    EngineSnapshot,
    PacingMode,
    PartitionPlan,
    Phase,
    PhaseLimit,
    Split,
    WorkerReport,
    WorkerState,
)

_NOTICE_SECONDS = 3.0
"""Until a worker that is ending is seen in a snapshot, and the daemon's present question is answered."""
_SHADOW_SECONDS = 60.0
"""After a worker's death, in which another one that stands still is laid to it."""


class Mps:
    enforcement = Enforcement.SPATIAL_CAP
    mixes = False  # a decode worker's rungs and graphs have not been seen to run prompts on a GPU
    settle_seconds = 180.0
    """A cold rung starts a process, attaches it, warms it up and proves it."""

    def __init__(
        self,
        programs: Programs,
        children: Children,
        base: Path,
        clock: Clock,
        telemetry: Telemetry | None = None,
        look: Callable[[], Host] | None = None,
        timing: Timing = Timing(),
        green: bool = False,
    ) -> None:
        """`base`: holds the daemons' directories. `look`: the facts for the preflight; default: of this machine.
        `green`: rungs are streams of one worker for each phase, where the self-test finds that they can be."""
        self._wants_green = green
        self._lost: dict[int, str] = {}
        """Percents that a worker has lost, by its own word."""
        self._look = look or (lambda: preflight.look(programs, telemetry, base))
        self._keeper = Keeper(programs, children, base, clock, timing, wants_green=green)
        self._condemned: Problem | None = None
        self._clock = clock
        self._timing = timing
        self._core = ""
        self._deaths: dict[str, int] = {}
        self._ending: frozenset[int] = frozenset()
        self._died_at = -math.inf
        self._ready_since: dict[int, float] = {}
        """When each worker was first seen ready, by PID."""

    # ---- life -------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self._keeper.daemon is not None and self._condemned is None

    @property
    def incarnation(self) -> int:
        return self._keeper.incarnation

    @property
    def lost(self) -> Problem | None:
        return self._keeper.lost

    @property
    def name(self) -> str:
        """Which of both is in force, or will be."""
        return "mps-green" if self._wants_green and self._keeper.green_refused is None else "mps"

    @property
    def notice(self) -> str:
        if (refused := self._keeper.green_refused) is not None:
            return str(refused)
        if (green := self._keeper.green) is None:
            return ""
        said = [] if green.seen else [f"whether the phases' lanes share an SM was not seen: {green.why}"]
        lost = {**green.lost, **self._lost}
        said += [f"without the rung of {percent} %: {why}" for percent, why in sorted(lost.items())]
        return "; ".join(said)

    @property
    def rungs(self) -> tuple[int, ...]:
        green = self._keeper.green
        return ladder.LADDER if green is None else tuple(each for each in green.rungs if each not in self._lost)

    @property
    def prepares(self) -> bool:
        return self._keeper.green is None

    @property
    def losses(self) -> int:
        """Daemons that were lost while they were in force."""
        return self._keeper.losses

    def preflight(self) -> None:
        if not self._keeper.begun:  # later, the MPS clients on the GPU are our own
            preflight.judge(self._look())

    async def run(self) -> None:
        await self._keeper.run()

    async def evict(self) -> None:
        await self._keeper.evict()

    async def close(self) -> None:
        await self._keeper.close()

    def xid(self, number: int) -> None:
        """The driver reported a critical error."""
        if is_hardware(number):
            self.condemn(f"the GPU reported Xid {number}")
        else:
            self._keeper.suspect(f"Xid {number}")

    def condemn(self, found: str) -> None:
        """The GPU itself is at fault, for good."""
        remedy = "delete the pod to have it scheduled anew, and check the node"
        self._condemned = Problem(PartitionReason.GPU_UNHEALTHY, f"{found}: {remedy}")

    def health(self) -> Problem | None:
        return self._condemned or self._keeper.problem

    # ---- the split --------------------------------------------------------------------------------------------------

    def quantize(self, want: Split) -> Split:
        return ladder.quantize(want, self.rungs)

    def plan(self, split: Split) -> PartitionPlan:
        return PartitionPlan(
            split=split,
            enforcement=engine.Enforcement.SPATIAL_CAP,
            mode=PacingMode.RUNGS,
            prefill=self._limit(Phase.PREFILL, split.prefill),
            decode=self._limit(Phase.DECODE, split.decode),
            whole=self._limit(Phase.DECODE, WHOLE),
        )

    def _limit(self, phase: Phase, percent: int) -> PhaseLimit:
        """A worker of its own under this percentage, or a stream of a worker that has the whole device."""
        daemon, as_stream = self._keeper.daemon, self._keeper.green is not None
        assert daemon is not None, "a plan is made while ready"
        return PhaseLimit(
            percent=percent,
            environment=green.environment(daemon.variables(WHOLE)) if as_stream else daemon.variables(percent),
            rung=green.number(percent) if as_stream else None,
            sm_count=self._expected(phase, percent),
            terminate_seconds=self._timing.terminate + _NOTICE_SECONDS,
        )

    def _expected(self, phase: Phase, percent: int) -> int | None:
        """SMs of a rung, as they were measured."""
        found = self._keeper.green
        if found is None or percent == WHOLE:
            return self._keeper.counts.get(percent)
        return found.sms[phase].get(percent)

    def follow(self, snapshot: EngineSnapshot) -> None:
        """A worker's death makes the server suspect: all clients are one fault domain. Even where it still takes a
        probe, a peer that stands still after the death convicts it."""
        if snapshot.core_id != self._core:
            self.core_gone()
            self._core, self._deaths = snapshot.core_id, {}
        living = (w.pid for w in snapshot.workers if w.state is not WorkerState.DEAD)
        self._keeper.workers = frozenset((*living, *snapshot.leaving))
        self._lost = {
            green.percent_of(number): f"{worker.phase}: {why}"
            for worker in snapshot.workers
            for number, why in worker.lost_rungs.items()
        }
        now = self._clock.monotonic()
        ready = [w.pid for w in snapshot.workers if w.state is WorkerState.READY]
        self._ready_since = {pid: self._ready_since.get(pid, now) for pid in ready}
        deaths = {phase.value: snapshot.restarts.get(phase.value, 0) for phase in Phase}
        died = [phase for phase, count in deaths.items() if count > self._deaths.get(phase, 0)]
        self._deaths = deaths
        if died:
            self._died_at = now
            self._keeper.suspect(f"the death of a {' and a '.join(died)} worker")
        ending = frozenset(w.pid for w in snapshot.workers if w.ending)
        if ending - self._ending:
            self._keeper.terminate(ending - self._ending)
        self._ending = ending
        if now - self._died_at <= _SHADOW_SECONDS:
            for worker in snapshot.workers:
                if worker.state is WorkerState.READY and worker.heartbeat_age_seconds > self._timing.stall:
                    self._died_at = -math.inf
                    self._keeper.condemn(f"{worker.phase} worker {worker.pid} stands still since another one died")

    def core_gone(self) -> None:
        """They leave by themselves, but for one that hangs, and that one its resident kills soon: MPS is first."""
        left = self._keeper.workers - self._ending
        if left:
            self._died_at = self._clock.monotonic()
            self._keeper.suspect("the end of all workers with their core")
            self._keeper.terminate(pid for pid in left if Path(f"/proc/{pid}").exists())
        self._ending |= left

    def verify(self, worker: WorkerReport, split: Split) -> Problem | None:
        want = split.of(worker.phase)
        who = f"{worker.phase} worker {worker.pid}"
        if worker.percent != want:
            return Problem(
                PartitionReason.READBACK_MISMATCH, f"{who} runs on the {worker.percent} % rung, not {want} %"
            )
        expected, total = self._expected(worker.phase, want), self._keeper.total
        if worker.sm_count is None or expected is None:
            return Problem(PartitionReason.READBACK_MISMATCH, f"{who} does not say how many SMs it sees")
        if worker.sm_count == total != expected and self._keeper.green is None:
            return Problem(
                PartitionReason.WORKER_OUTSIDE_MPS, f"{who} sees all {total} SMs although its rung has {expected}"
            )
        if worker.sm_count != expected:
            said = f"{who} sees {worker.sm_count} SMs, and the {want} % rung has {expected} of {total}"
            return Problem(PartitionReason.READBACK_MISMATCH, said)
        return self._outside(worker)

    def _outside(self, worker: WorkerReport) -> Problem | None:
        """Is the worker missing among the server's clients? A list from before it was ready proves nothing, nor does
        one without any of our workers: the daemon may number processes in another namespace."""
        clients = self._keeper.clients
        if clients is None or clients.asked < self._ready_since.get(worker.pid, clients.asked + 1):
            return None
        if worker.pid in clients.pids or (clients.pids and not clients.pids & self._keeper.workers):
            return None
        return Problem(
            PartitionReason.WORKER_OUTSIDE_MPS,
            f"{worker.phase} worker {worker.pid} is not among the MPS server's clients",
        )
