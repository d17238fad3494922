"""The phase workers as core sees them: spawned through the resident, watched by pidfd, replaced when they die.

A phase has a place for each rung that `core.partitions` keeps, and in each place at most one worker. A worker's death
is believed only when the kernel says so (pidfd): until then it may still write to the KV pool. How it ended only its
parent can say, so the resident's word is waited for; nobody else could start the next worker anyway. Then its channel
is drained to the end, so that every step it reported is booked, and only then is it reported lost.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from semipd_engine.contract import Phase, WorkerState
from semipd_engine.core.event_loop import Connection, EventLoop
from semipd_engine.core.fault_isolation import Ending
from semipd_engine.core.holder import UNIFIED, Worker
from semipd_engine.core.partitions import Partitions, Rung, contradiction
from semipd_engine.ipc.messages import (
    PlanAnswer,
    PlanStale,
    Shutdown,
    Spawned,
    SpawnWorker,
    StepFailed,
    StepResult,
    WorkerReady,
    WorkerToCore,
    WorkerUnfit,
)
from semipd_engine.pacing.page import SEATS

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 1.0
UNFIT_BACKOFF_SECONDS = 10.0
"""Until a worker that cannot serve is tried again."""
DEATHS_BEFORE_READY = 3
"""A rung whose workers die so often before they are ready is unfit."""
RETIRE_SECONDS = 10.0
"""Time for a worker that is not needed any more to finish its plan and exit."""
EXIT_SECONDS = 2.0
"""Time for a worker that has closed its channel to end: one that is killed while it leaves a GPU disturbs others."""

log = logging.getLogger(__name__)


@dataclass
class Workers:
    """All places. `on_result` and `on_lost` are the engine core's."""

    loop: EventLoop
    roles: tuple[str, ...]
    partitions: Partitions
    on_result: Callable[[Worker, PlanAnswer], None]
    on_lost: Callable[[Worker, Ending], None]
    start_seconds: float = 60.0
    """A worker that is not ready after so long is killed."""
    deaths: Counter[str] = field(default_factory=Counter)
    """Unwanted deaths by role."""
    _places: dict[tuple[str, Rung], Worker] = field(default_factory=dict)
    _retiring: list[Worker] = field(default_factory=list)
    _generations: Counter[str] = field(default_factory=Counter)
    _ask: Callable[[SpawnWorker], None] | None = None
    _device_sms: int | None = None

    def of(self, role: str) -> list[Worker]:
        """The role's places, the one that is routed to first."""
        routed = self.route(role, alone=False)
        places = [worker for worker in self._places.values() if worker.role == role]
        return sorted(places, key=lambda worker: worker is not routed)

    def overdue(self, phase: Phase) -> list[Worker]:
        """The phase's retiring workers that must be ended."""
        return [w for w in self._retiring if w.role == self.role_of(phase) and w.kill_at is not None and w.pidfd >= 0]

    def role_of(self, phase: Phase) -> str:
        return UNIFIED if UNIFIED in self.roles else phase.value

    def route(self, role: str, alone: bool) -> Worker | None:
        """The worker that the role's next step goes to."""
        for rung in self.partitions.route(role, alone):
            worker = self._places.get((role, rung))
            if worker is not None and worker.ready:
                return worker
        return None

    def is_ready(self, role: str, rung: Rung) -> bool:
        worker = self._places.get((role, rung))
        return worker is not None and worker.ready

    # ---- the resident comes and goes -----------------------------------------------------------------------------

    def attach(self, ask: Callable[[SpawnWorker], None], device_sms: int | None) -> None:
        """A resident is there: ask it for all workers. `device_sms`: streaming multiprocessors of the whole GPU."""
        self._ask, self._device_sms = ask, device_sms
        for worker in self._places.values():
            worker.spawn_at = 0.0

    def detach(self) -> None:
        """The resident is gone, and its workers with it: make sure of that. Each is booked and buried when the kernel
        says that it is dead (`gone`), which for a process that holds a GPU may take seconds."""
        self._ask = None
        for worker in list(self.everyone()):
            worker.spawn_at = None
            worker.backoff = 0.0
            if worker.pidfd >= 0:
                worker.orphaned = True
                self._signal(worker)
            else:
                worker.state = WorkerState.DEAD  # asked for, and never answered
        for worker in [w for w in self._retiring if w.pidfd < 0]:
            self._retiring.remove(worker)

    @property
    def gone(self) -> bool:
        """Is every worker dead and buried? Only then may another resident's pool be used."""
        return all(worker.pidfd < 0 for worker in self.everyone())

    # ---- each turn of the loop -----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Ask for the workers that are due, let those go that no partition keeps, give up on those that hang."""
        if self._ask is None:
            return
        for role in self.roles:
            kept = self.partitions.kept(role)
            for place in [key for key in self._places if key[0] == role and key[1] not in kept]:
                self._retire(self._places.pop(place), now)
            for rung in self.partitions.wanted(role):
                worker = self._places.setdefault((role, rung), Worker(role, rung))
                if worker.spawn_at is not None and now >= worker.spawn_at:
                    self._spawn(self._ask, worker, now)
        for worker in self.everyone():
            late = worker.state is WorkerState.STARTING and now - worker.started_at > self.start_seconds
            if late and worker.give_up_at is None:
                self._unfit(worker, "PrepareTimeout", f"it did not become ready within {self.start_seconds:g} s")
                worker.give_up_at = now
            if worker.give_up_at is not None and now >= worker.give_up_at:
                self.kill(worker)
            if worker.kill_at is not None and now >= worker.kill_at:
                self._signal(worker)

    def _spawn(self, ask: Callable[[SpawnWorker], None], worker: Worker, now: float) -> None:
        taken = {w.seat for w in self.everyone() if w.role == worker.role and w.alive}
        seat = next((seat for seat in range(SEATS) if seat not in taken), None)
        if seat is None:
            return  # some are draining still
        self._generations[worker.role] += 1
        worker.seat, worker.generation, worker.state = seat, self._generations[worker.role], WorkerState.STARTING
        worker.spawn_at, worker.started_at, worker.sm_count, worker.give_up_at = None, now, None, None
        worker.kill_at, worker.orphaned = None, False
        rung = worker.rung
        ask(SpawnWorker(worker.role, worker.generation, seat, rung.percent, dict(rung.environment)))

    def _retire(self, worker: Worker, now: float) -> None:
        """Nothing more is routed to it. It finishes the plan in hand, since messages arrive in order, and exits."""
        if worker.alive:
            log.info("%s worker %d retires (generation %d)", worker.title, worker.pid, worker.generation)
            worker.give_up_at = now + RETIRE_SECONDS
            self._retiring.append(worker)
            if worker.connection is not None:
                worker.send(Shutdown())

    def spawned(self, message: Spawned, channel_fd: int, pidfd: int) -> None:
        worker = next(w for w in self.everyone() if (w.role, w.generation) == (message.phase, message.generation))
        worker.pid, worker.pidfd, worker.started_at = message.pid, pidfd, time.monotonic()
        worker.progressed = False
        worker.connection = Connection(
            self.loop,
            socket.socket(fileno=channel_fd),
            WorkerToCore,
            on_message=lambda m: self._on_message(worker, m),
            on_close=lambda: self._on_channel_closed(worker),
        )
        self.loop.watch(pidfd, selectors.EVENT_READ, lambda _: self._died(worker))
        if worker.give_up_at is not None:
            worker.send(Shutdown())

    def ended(self, pid: int, status: int) -> None:
        """The resident has reaped a worker."""
        for worker in self.everyone():
            if worker.pid == pid and worker.pidfd >= 0:
                self._buried(worker, Ending(status))

    def shut_down(self, timeout: float) -> None:
        """Let each worker finish the plan in hand and exit; kill those that do not."""
        deadline = time.monotonic() + timeout
        self._ask = None
        for worker in self.everyone():
            if worker.connection is not None:
                worker.connection.send(Shutdown())
        while any(w.pidfd >= 0 for w in self.everyone()) and time.monotonic() < deadline:
            self.loop.run_once(0.1)
        for worker in self.everyone():
            self._signal(worker)

    # ---- what a worker says and how it ends ----------------------------------------------------------------------

    def _on_message(self, worker: Worker, message: WorkerReady | WorkerUnfit | PlanAnswer) -> None:
        match message:
            case WorkerReady():
                self._on_ready(worker, message)
            case WorkerUnfit(reason, text):
                self._unfit(worker, reason, text)
            case StepResult() | StepFailed() | PlanStale():
                worker.progressed |= isinstance(message, StepResult)
                self.on_result(worker, message)

    def _on_ready(self, worker: Worker, message: WorkerReady) -> None:
        if worker.state is not WorkerState.STARTING:
            return  # it said so before it died, and its death was seen first
        worker.sm_count = message.sm_count
        wrong = contradiction(worker.rung, message.sm_count, self._device_sms)
        if wrong is not None:
            self._unfit(worker, "SMCountMismatch", wrong)
            self.kill(worker)
            return
        worker.state, worker.problem, worker.early_deaths = WorkerState.READY, "", 0
        log.info("%s worker %d is ready (generation %d)", worker.title, worker.pid, worker.generation)
        if all(self.is_ready(role, rung) for role in self.roles for rung in self.partitions.kept(role)):
            self.partitions.recovered()

    def _unfit(self, worker: Worker, reason: str, message: str) -> None:
        log.error("%s worker %d cannot serve: %s: %s", worker.title, worker.pid, reason, message)
        worker.problem = f"{reason}: {message}"
        self.partitions.unfit(worker.role, worker.rung, reason, message)

    def _on_channel_closed(self, worker: Worker) -> None:
        """The end of its stream: the worker is exiting or broken. Its death is what counts; see that it comes."""
        worker.give_up_at = min(worker.give_up_at or math.inf, time.monotonic() + EXIT_SECONDS)

    def kill(self, worker: Worker) -> None:
        """End it: at once, or where its rung says so after the agent had time to end it cleanly. Idempotent."""
        if worker.kill_at is None:
            worker.kill_at = time.monotonic() + worker.rung.terminate_seconds
        if not worker.rung.terminate_seconds:
            self._signal(worker)

    def _signal(self, worker: Worker) -> None:
        if worker.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def _died(self, worker: Worker) -> None:
        """The kernel says that the worker is dead; its parent will say how, if it has one."""
        if worker.orphaned:
            self._buried(worker, Ending())
            return
        self.loop.forget(worker.pidfd)
        worker.died_early, worker.state = worker.state is WorkerState.STARTING, WorkerState.DEAD

    def _buried(self, worker: Worker, ending: Ending) -> None:
        """Dead and reaped: nothing it started can touch the pool any more."""
        connection, worker.connection = worker.connection, None
        if connection is not None:
            connection.drain()
            connection.close()
        self.loop.forget(worker.pidfd)
        os.close(worker.pidfd)
        worker.pidfd = -1
        early = worker.died_early or worker.state is WorkerState.STARTING
        worker.died_early, worker.state = False, WorkerState.DEAD
        if worker in self._retiring:
            self._retiring.remove(worker)
            log.info("%s worker %d has ended (generation %d)", worker.title, worker.pid, worker.generation)
        else:
            self._replace(worker, early, ending)
        self.on_lost(worker, ending)

    def _replace(self, worker: Worker, early: bool, ending: Ending) -> None:
        self.deaths[worker.role] += 1
        if early and not worker.problem:
            worker.early_deaths += 1
            if worker.early_deaths % DEATHS_BEFORE_READY == 0:
                times = f"{worker.early_deaths} times in a row it died before it was ready; its log says why"
                self.partitions.unfit(worker.role, worker.rung, "WorkerDied", times)
        if worker.progressed:
            worker.backoff = 0.0
        if self._ask is not None:
            worker.spawn_at = time.monotonic() + (UNFIT_BACKOFF_SECONDS if worker.problem else worker.backoff)
        worker.backoff = min(LONGEST_BACKOFF_SECONDS, max(FIRST_BACKOFF_SECONDS, worker.backoff * 2))
        log.warning("%s worker %d died (generation %d): %s", worker.title, worker.pid, worker.generation, ending)

    def everyone(self) -> Iterator[Worker]:
        """All places, and the workers that are retiring."""
        yield from list(self._places.values())
        yield from list(self._retiring)
