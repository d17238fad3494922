"""The phase workers as core sees them: spawned through the resident, watched by pidfd, replaced when they die.

A worker's death is believed only when the kernel says so (pidfd): until then it may still write to the KV pool. How it
ended only its parent can say, so the resident's word is waited for; nobody else could start the next worker anyway.
Then its channel is drained to the end, so that every step it reported is booked, and only then is it reported lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from semipd_engine.contract import Phase, WorkerState
from semipd_engine.core.blame import Ending
from semipd_engine.core.event_loop import Connection, EventLoop
from semipd_engine.ipc.messages import (
    CoreToWorker,
    Shutdown,
    Spawned,
    SpawnWorker,
    StepFailed,
    StepResult,
    WorkerReady,
    WorkerToCore,
)

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 1.0
UNIFIED = "unified"
"""The role of the one worker that executes both phases' plans."""

log = logging.getLogger(__name__)


@dataclass
class Worker:
    """One role's place: the worker that fills it now, and the count of those that did."""

    role: str
    generation: int = 0
    state: WorkerState = WorkerState.DEAD
    pid: int = 0
    pidfd: int = -1
    connection: Connection[WorkerToCore] | None = None
    started_at: float = 0.0
    spawn_at: float | None = None
    """When to ask for a worker; None while one is asked for or alive."""
    progressed: bool = False
    """It has completed a step: such a worker is replaced at once, others after a growing pause."""
    backoff: float = 0.0
    deaths: int = 0

    @property
    def ready(self) -> bool:
        return self.state is WorkerState.READY

    @property
    def slot(self) -> Phase:
        """Whose slot of the pacing page it keeps; the unified worker keeps prefill's."""
        return Phase.PREFILL if self.role == UNIFIED else Phase(self.role)

    def send(self, plan: CoreToWorker) -> None:
        assert self.connection is not None
        self.connection.send(plan)


@dataclass
class Workers:
    """All roles. `on_result` and `on_lost` are the engine core's."""

    loop: EventLoop
    roles: tuple[str, ...]
    on_result: Callable[[Worker, StepResult | StepFailed], None]
    on_lost: Callable[[Worker, Ending], None]
    by_role: dict[str, Worker] = field(init=False)
    _ask: Callable[[SpawnWorker], None] | None = None

    def __post_init__(self) -> None:
        self.by_role = {role: Worker(role) for role in self.roles}

    @property
    def all_ready(self) -> bool:
        return all(worker.ready for worker in self.by_role.values())

    def for_phase(self, phase: Phase) -> Worker:
        return self.by_role[UNIFIED if UNIFIED in self.by_role else phase.value]

    def attach(self, ask: Callable[[SpawnWorker], None]) -> None:
        """A resident is there: ask it for all workers."""
        self._ask = ask
        for worker in self.by_role.values():
            worker.spawn_at = 0.0

    def detach(self) -> None:
        """The resident is gone, and its workers with it: make sure of that, and book what they had reported."""
        self._ask = None
        for worker in self.by_role.values():
            worker.spawn_at = None
            if worker.pidfd >= 0:
                self.kill(worker)
                poll = selectors.DefaultSelector()
                poll.register(worker.pidfd, selectors.EVENT_READ)
                poll.select(timeout=10)  # a killed process is gone in milliseconds
                poll.close()
                self._buried(worker, Ending())
            worker.backoff = 0.0

    def tick(self, now: float) -> None:
        """Ask for the workers that are due."""
        for worker in self.by_role.values():
            if self._ask is not None and worker.spawn_at is not None and now >= worker.spawn_at:
                worker.spawn_at = None
                worker.generation += 1
                worker.state = WorkerState.STARTING
                self._ask(SpawnWorker(phase=worker.role, generation=worker.generation))

    def spawned(self, message: Spawned, channel_fd: int, pidfd: int) -> None:
        worker = self.by_role[message.phase]
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

    def ended(self, pid: int, status: int) -> None:
        """The resident has reaped a worker."""
        for worker in self.by_role.values():
            if worker.pid == pid and worker.pidfd >= 0:
                self._buried(worker, Ending(status))

    def shut_down(self, timeout: float) -> None:
        """Let each worker finish the plan in hand and exit; kill those that do not."""
        deadline = time.monotonic() + timeout
        self._ask = None
        for worker in self.by_role.values():
            if worker.connection is not None:
                worker.connection.send(Shutdown())
        while any(w.pidfd >= 0 for w in self.by_role.values()) and time.monotonic() < deadline:
            self.loop.run_once(0.1)
        for worker in self.by_role.values():
            self.kill(worker)

    def _on_message(self, worker: Worker, message: WorkerReady | StepResult | StepFailed) -> None:
        if isinstance(message, WorkerReady):
            worker.state = WorkerState.READY
            log.info("%s worker %d is ready (generation %d)", worker.role, worker.pid, worker.generation)
        else:
            worker.progressed |= isinstance(message, StepResult)
            self.on_result(worker, message)

    def _on_channel_closed(self, worker: Worker) -> None:
        """The end of its stream: the worker is exiting or broken. Its death is what counts; see that it comes."""
        self.kill(worker)

    def kill(self, worker: Worker) -> None:
        if worker.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def _died(self, worker: Worker) -> None:
        """The kernel says that the worker is dead; its parent will say how."""
        self.loop.forget(worker.pidfd)
        worker.state = WorkerState.DEAD

    def _buried(self, worker: Worker, ending: Ending) -> None:
        """Dead and reaped: nothing it started can touch the pool any more."""
        connection, worker.connection = worker.connection, None
        if connection is not None:
            connection.drain()
            connection.close()
        self.loop.forget(worker.pidfd)
        os.close(worker.pidfd)
        worker.pidfd = -1
        worker.state = WorkerState.DEAD
        worker.deaths += 1
        now = time.monotonic()
        if worker.progressed:
            worker.backoff = 0.0
        if self._ask is not None:
            worker.spawn_at = now + worker.backoff
        worker.backoff = min(LONGEST_BACKOFF_SECONDS, max(FIRST_BACKOFF_SECONDS, worker.backoff * 2))
        log.warning("%s worker %d died (generation %d): %s", worker.role, worker.pid, worker.generation, ending)
        self.on_lost(worker, ending)
