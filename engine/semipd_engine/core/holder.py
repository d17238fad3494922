"""Who holds the limits of a phase: one worker process at a time, as core sees it. `worker_pool` says when."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass, field
from typing import NamedTuple

from semipd_engine.contract import Phase, WorkerState
from semipd_engine.core.event_loop import Connection
from semipd_engine.core.partitions import Rung, contradiction
from semipd_engine.ipc.steps import CoreToWorker, WorkerToCore

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 1.0
UNFIT_BACKOFF_SECONDS = 10.0
"""Until a worker that cannot serve is tried again."""


class HolderKey(NamedTuple):
    """What tells two holders apart. A worker process adds its generation."""

    phase: Phase
    environment: tuple[tuple[str, str], ...] = ()
    rank: int = 0
    """Of a tensor-parallel group; a step is complete when all ranks have reported. Today a group has one: more than one
    GPU is refused by name."""


@dataclass(eq=False)
class Holder:
    """Of one rung or, where a limit is no more than a stream, of several that share an environment. The worker process
    that fills it now, or filled it last."""

    key: HolderKey
    rung: Rung
    """The one that it is named after; of several the one to which steps go while both phases are busy."""
    seat: int = 0
    """Its record in the pacing page, among those of its phase."""
    generation: int = 0
    state: WorkerState = WorkerState.DEAD
    pid: int = 0
    pidfd: int = -1
    connection: Connection[WorkerToCore] | None = None
    asked_at: float = 0.0
    """When core asked for it, by CLOCK_MONOTONIC; `started_at`: when its process was there."""
    started_at: float = 0.0
    spawn_at: float | None = 0.0
    """When to ask for a worker; None while one is asked for or alive."""
    progressed: bool = False
    """It has completed a step: such a worker is replaced at once, others after a growing pause."""
    backoff: float = 0.0
    died_early: bool = False
    """The kernel says that it is dead, and it never was ready; its parent's word is waited for."""
    early_deaths: int = 0
    """Deaths in a row before it was ready."""
    problem: str = ""
    """Why it cannot serve; empty once it is ready."""
    sm_count: int | None = None
    rungs: dict[int, int] = field(default_factory=dict)
    """Where it holds several: the SMs of each, by number, as it read them back."""
    lost: dict[int, str] = field(default_factory=dict)
    """Of those it was to hold, which have failed, and why."""
    start_seconds: dict[str, float] = field(default_factory=dict)
    """Parts of its start: `launch`, until its process began with the others."""
    give_up_at: float | None = None
    """It is retiring: killed then, if it has not ended by itself."""
    kill_at: float | None = None
    """It is to be killed: by whoever can end a client of the device cleanly until then, by a signal afterwards."""
    orphaned: bool = False
    """Its parent is gone, so nobody will say how it ended."""

    @property
    def ready(self) -> bool:
        return self.state is WorkerState.READY and self.connection is not None and not self.connection.closed

    @property
    def alive(self) -> bool:
        """Asked for, running, or dead and not buried yet: it has its seat until then."""
        return self.state is not WorkerState.DEAD or self.pidfd >= 0

    def lacks(self, rung: Rung) -> tuple[str, str] | None:
        """Why this worker, which is ready, cannot take a step on one of several rungs: a reason and its words."""
        if rung.alone:
            return None
        seen = self.rungs.get(rung.index)
        if seen is None:
            return "RungLost", self.lost.get(rung.index, "the worker does not hold it")
        wrong = contradiction(rung, seen, None)
        return None if wrong is None else ("SMCountMismatch", wrong)

    @property
    def phase(self) -> Phase:
        return self.key.phase

    @property
    def title(self) -> str:
        """A worker of several rungs has no percentage of its own."""
        return self.phase if self.percent is None else f"{self.phase} {self.percent} %"

    @property
    def percent(self) -> int | None:
        return self.rung.percent if self.rung.alone else None

    def asked(self, seat: int, generation: int, now: float) -> None:
        """A worker is on its way: what was known of the one before is of no worker any more."""
        self.seat, self.generation, self.state = seat, generation, WorkerState.STARTING
        self.spawn_at, self.started_at, self.sm_count, self.give_up_at = None, now, None, None
        self.kill_at, self.orphaned = None, False
        self.asked_at, self.start_seconds, self.rungs, self.lost = now, {}, {}, {}

    def pause(self) -> float:
        """Its worker has died: seconds until another is asked for. They grow until one completes a step."""
        if self.progressed:
            self.backoff = 0.0
        found = UNFIT_BACKOFF_SECONDS if self.problem else self.backoff
        self.backoff = min(LONGEST_BACKOFF_SECONDS, max(FIRST_BACKOFF_SECONDS, self.backoff * 2))
        return found

    def kill_now(self) -> None:
        """By a signal, if a worker is there."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def send(self, plan: CoreToWorker) -> None:
        assert self.connection is not None
        self.connection.send(plan)
