"""The phase workers as core sees them: spawned through the resident, watched by pidfd, replaced when they die.

A phase has a holder for each environment that `core.partitions` keeps, and each holder at most one worker. A worker's
death is believed only when the kernel says so (pidfd): until then it may still write to the KV pool. How it ended only
its parent can say, so the resident's word is waited for; nobody else could start the next worker anyway. Then its
channel is drained to the end, so that every step it reported is booked, and only then is it reported lost.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from semipd_engine.contract import Phase, WorkerState
from semipd_engine.core.event_loop import Connection, EventLoop
from semipd_engine.core.fault_isolation import Ending
from semipd_engine.core.holder import LONGEST_BACKOFF_SECONDS, Holder, HolderKey
from semipd_engine.core.partitions import Partitions, Rung, contradiction
from semipd_engine.ipc.steps import (
    PlanAnswer,
    PlanStale,
    Shutdown,
    StepFailed,
    StepResult,
    WorkerReady,
    WorkerToCore,
    WorkerUnfit,
)
from semipd_engine.ipc.workers import Spawned, SpawnFailed, SpawnWorker
from semipd_engine.pacing.page import SEATS

DEATHS_BEFORE_READY = 3
"""A rung whose workers die so often before they are ready is unfit."""
RETIRE_SECONDS = 10.0
"""Time for a worker that is not needed any more to finish its plan and exit."""
EXIT_SECONDS = 2.0
"""Time for a worker that has closed its channel to end: one that is killed while it leaves a GPU disturbs others."""

log = logging.getLogger(__name__)


@dataclass
class WorkerPool:
    """All holders. `on_result` and `on_lost` are the engine core's."""

    loop: EventLoop
    phases: tuple[Phase, ...]
    partitions: Partitions
    on_result: Callable[[Holder, PlanAnswer], None]
    on_lost: Callable[[Holder, Ending], None]
    start_seconds: float = 60.0
    """A worker that is not ready after so long is killed."""
    deaths: Counter[Phase] = field(default_factory=Counter)
    """Unwanted deaths by phase."""
    _holders: dict[HolderKey, Holder] = field(default_factory=dict)
    _retiring: list[Holder] = field(default_factory=list)
    _generations: Counter[Phase] = field(default_factory=Counter)
    _ask: Callable[[SpawnWorker], None] | None = None
    _device_sms: int | None = None
    _shutting_down: bool = False

    def of(self, phase: Phase) -> list[Holder]:
        return [holder for holder in self._holders.values() if holder.phase is phase]

    def overdue(self, phase: Phase) -> list[Holder]:
        """The phase's retiring workers that must be ended."""
        return [h for h in self._retiring if h.phase is phase and h.kill_at is not None and h.pidfd >= 0]

    @property
    def leaving(self) -> tuple[int, ...]:
        """PIDs of retiring workers that may end by themselves still."""
        return tuple(h.pid for h in self._retiring if h.kill_at is None and h.pidfd >= 0)

    def holder(self, phase: Phase, rung: Rung) -> Holder | None:
        """Who holds this rung of the phase, ready or not."""
        return self._holders.get(HolderKey(phase, rung.environment))

    def is_ready(self, phase: Phase, rung: Rung) -> bool:
        holder = self.holder(phase, rung)
        return holder is not None and holder.ready and holder.lacks(rung) is None

    # ---- the resident comes and goes -----------------------------------------------------------------------------

    def attach(self, ask: Callable[[SpawnWorker], None], device_sms: int | None) -> None:
        """A resident is there: ask it for all workers. `device_sms`: streaming multiprocessors of the whole GPU."""
        self._ask, self._device_sms = ask, device_sms
        for holder in self._holders.values():
            holder.spawn_at = 0.0

    def detach(self) -> None:
        """The resident is gone, and its workers with it: make sure of that. Each is booked and buried when the kernel
        says that it is dead (`gone`), which for a process that holds a GPU may take seconds."""
        self._ask = None
        for holder in list(self.everyone()):
            holder.spawn_at = None
            holder.backoff = 0.0
            if holder.pidfd < 0:
                holder.state = WorkerState.DEAD  # asked for, and never answered
            elif holder.state is WorkerState.DEAD:
                self._buried(holder, Ending())  # dead already, and nobody is left to say how
            else:
                holder.orphaned = True
                holder.kill_now()
        for holder in [h for h in self._retiring if h.pidfd < 0]:
            self._retiring.remove(holder)

    @property
    def gone(self) -> bool:
        """Is every worker dead and buried? Only then may another resident's pool be used."""
        return all(holder.pidfd < 0 for holder in self.everyone())

    # ---- each turn of the loop -----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Ask for the workers that are due, let those go that no partition keeps, give up on those that hang."""
        if self._ask is None:
            return
        for phase in self.phases:
            kept = {HolderKey(phase, rung.environment) for rung in self.partitions.kept(phase)}
            for key in [key for key in self._holders if key.phase is phase and key not in kept]:
                self._retire(self._holders.pop(key), now)
            wanted = self.partitions.wanted(phase)
            for rung in wanted:
                key = HolderKey(phase, rung.environment)
                holder = self._holders.setdefault(key, Holder(key, rung))
                holder.rung = holder.rung if holder.rung.alone else wanted[0]
                if holder.ready and (missing := holder.lacks(rung)) is not None:
                    self.partitions.unfit(phase, rung, *missing)
                if holder.spawn_at is not None and now >= holder.spawn_at:
                    self._spawn(self._ask, holder, now)
        for holder in self.everyone():
            late = holder.state is WorkerState.STARTING and now - holder.started_at > self.start_seconds
            if late and holder.give_up_at is None:
                self._unfit(holder, "PrepareTimeout", f"it did not become ready within {self.start_seconds:g} s")
                holder.give_up_at = now
            if holder.give_up_at is not None and now >= holder.give_up_at:
                self.kill(holder)
            if holder.kill_at is not None and now >= holder.kill_at:
                holder.kill_now()

    def _spawn(self, ask: Callable[[SpawnWorker], None], holder: Holder, now: float) -> None:
        taken = {h.seat for h in self.everyone() if h.phase is holder.phase and h.alive}
        seat = next((seat for seat in range(SEATS) if seat not in taken), None)
        if seat is None:
            return  # some are draining still
        self._generations[holder.phase] += 1
        holder.asked(seat, self._generations[holder.phase], now)
        rung = holder.rung
        environment = dict(rung.environment)
        ask(SpawnWorker(holder.phase, holder.generation, seat, holder.percent, environment, rung.terminate_seconds))

    def _retire(self, holder: Holder, now: float) -> None:
        """Nothing more is routed to it. It finishes the plan in hand, since messages arrive in order, and exits."""
        if holder.alive:
            log.info("%s worker %d retires (generation %d)", holder.title, holder.pid, holder.generation)
            holder.give_up_at = now + RETIRE_SECONDS
            self._retiring.append(holder)
            if holder.connection is not None:
                holder.send(Shutdown())

    def spawned(self, message: Spawned, channel_fd: int, pidfd: int) -> None:
        holder = self._asked(message.phase, message.generation)
        holder.pid, holder.pidfd, holder.started_at = message.pid, pidfd, time.monotonic()
        holder.progressed = False
        holder.connection = Connection(
            self.loop,
            socket.socket(fileno=channel_fd),
            WorkerToCore,
            on_message=lambda m: self._on_message(holder, m),
            on_close=lambda: self._on_channel_closed(holder),
        )
        self.loop.watch(pidfd, selectors.EVENT_READ, lambda _: self._died(holder))
        if holder.give_up_at is not None:
            holder.send(Shutdown())

    def not_spawned(self, message: SpawnFailed) -> None:
        """Another attempt follows after a pause: memory and processes come back when others give them."""
        holder = self._asked(message.phase, message.generation)
        self._unfit(holder, "SpawnFailed", message.message)
        holder.state = WorkerState.DEAD
        if holder in self._retiring:
            self._retiring.remove(holder)
        else:
            holder.spawn_at = time.monotonic() + LONGEST_BACKOFF_SECONDS

    def _asked(self, phase: Phase, generation: int) -> Holder:
        return next(h for h in self.everyone() if (h.phase, h.generation) == (phase, generation))

    def ended(self, pid: int, status: int) -> None:
        """The resident has reaped a worker."""
        for holder in self.everyone():
            if holder.pid == pid and holder.pidfd >= 0:
                self._buried(holder, Ending(status))

    def shut_down(self, timeout: float) -> None:
        """Let each worker finish the plan in hand and exit; kill those that do not, clients of MPS as late as ever."""
        self._ask, self._shutting_down = None, True
        for holder in self.everyone():
            if holder.connection is not None:
                holder.connection.send(Shutdown())
        self._run_until(time.monotonic() + timeout)
        late = [holder for holder in self.everyone() if holder.pidfd >= 0]
        for holder in late:
            self.kill(holder)
        self._run_until(max((holder.kill_at or 0.0 for holder in late), default=0.0))
        for holder in late:
            holder.kill_now()

    def _run_until(self, deadline: float) -> None:
        """Core's loop, whose state whoever asks still gets, until no worker is left or it is that late."""
        while not self.gone and time.monotonic() < deadline:
            self.loop.run_once(0.1)

    # ---- what a worker says and how it ends ----------------------------------------------------------------------

    def _on_message(self, holder: Holder, message: WorkerReady | WorkerUnfit | PlanAnswer) -> None:
        match message:
            case WorkerReady():
                self._on_ready(holder, message)
            case WorkerUnfit(reason, text):
                self._unfit(holder, reason, text)
            case StepResult() | StepFailed() | PlanStale():
                holder.progressed |= isinstance(message, StepResult)
                self.on_result(holder, message)

    def _on_ready(self, holder: Holder, message: WorkerReady) -> None:
        if holder.state is not WorkerState.STARTING:
            return  # it said so before it died, and its death was seen first
        holder.sm_count, holder.rungs, holder.lost = message.sm_count, message.rungs, message.lost
        wrong = contradiction(holder.rung, message.sm_count, self._device_sms) if holder.rung.alone else None
        if wrong is not None:
            self._unfit(holder, "SMCountMismatch", wrong)
            self.kill(holder)
            return
        holder.state, holder.problem, holder.early_deaths = WorkerState.READY, "", 0
        holder.start_seconds = {"launch": max(0.0, message.began_at - holder.asked_at), **message.start_seconds}
        age = 1e3 * (time.monotonic() - holder.started_at)
        log.info("%s worker %d is ready (generation %d, %.0f ms)", holder.title, holder.pid, holder.generation, age)
        if all(self.is_ready(phase, rung) for phase in self.phases for rung in self.partitions.kept(phase)):
            self.partitions.recovered()

    def _unfit(self, holder: Holder, reason: str, message: str) -> None:
        log.error("%s worker %d cannot serve: %s: %s", holder.title, holder.pid, reason, message)
        holder.problem = f"{reason}: {message}"
        self.partitions.unfit(holder.phase, holder.rung, reason, message)

    def _on_channel_closed(self, holder: Holder) -> None:
        """The end of its stream: the worker is exiting or broken. Its death is what counts; see that it comes."""
        holder.give_up_at = min(holder.give_up_at or math.inf, time.monotonic() + EXIT_SECONDS)

    def kill(self, holder: Holder) -> None:
        """End it: at once, or where its rung says so after the agent had time to end it cleanly. Idempotent."""
        if holder.kill_at is None:
            holder.kill_at = time.monotonic() + holder.rung.terminate_seconds
        if not holder.rung.terminate_seconds:
            holder.kill_now()

    def _died(self, holder: Holder) -> None:
        """The kernel says that the worker is dead; its parent will say how, if it has one."""
        if holder.orphaned:
            self._buried(holder, Ending())
            return
        self.loop.forget(holder.pidfd)
        holder.died_early, holder.state = holder.state is WorkerState.STARTING, WorkerState.DEAD

    def _buried(self, holder: Holder, ending: Ending) -> None:
        """Dead and reaped: nothing it started can touch the pool any more."""
        connection, holder.connection = holder.connection, None
        if connection is not None:
            connection.drain()
            connection.close()
        self.loop.forget(holder.pidfd)
        os.close(holder.pidfd)
        holder.pidfd = -1
        early = holder.died_early or holder.state is WorkerState.STARTING
        holder.died_early, holder.state = False, WorkerState.DEAD
        retired = holder in self._retiring
        if retired:
            self._retiring.remove(holder)
        if retired or (self._shutting_down and ending.status == 0):
            log.info("%s worker %d has ended (generation %d)", holder.title, holder.pid, holder.generation)
        else:
            self._replace(holder, early, ending)
        self.on_lost(holder, ending)

    def _replace(self, holder: Holder, early: bool, ending: Ending) -> None:
        self.deaths[holder.phase] += 1
        if early and not holder.problem:
            holder.early_deaths += 1
            if holder.early_deaths % DEATHS_BEFORE_READY == 0:
                times = f"{holder.early_deaths} times in a row it died before it was ready; its log says why"
                self.partitions.unfit(holder.phase, holder.rung, "WorkerDied", times)
        pause = holder.pause()
        if self._ask is not None:
            holder.spawn_at = time.monotonic() + pause
        log.warning("%s worker %d died (generation %d): %s", holder.title, holder.pid, holder.generation, ending)

    def everyone(self) -> Iterator[Holder]:
        """All holders, and those that are retiring."""
        yield from list(self._holders.values())
        yield from list(self._retiring)
