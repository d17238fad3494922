"""Keeps one MPS daemon in force: start, measure, watch, replace. Knows no split and no engine, only that clients live.

A lost daemon is never mended: the next incarnation has fresh directories, so every environment changes, and whoever
uses them starts all workers anew. What is lost decides how the old one ends:

* the control daemon died: its server still serves its clients, so it stays until they have moved;
* the server faulted, ended or fell silent: its clients are lost, so daemon and server are ended first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from semipd_agent.children import Children
from semipd_agent.clock import Clock
from semipd_agent.contract import PartitionReason
from semipd_agent.partitioner.base import Problem
from semipd_agent.partitioner.mps.control import ControlError, ControlTimeout, ServerStatus
from semipd_agent.partitioner.mps.daemon import Daemon, StartFailed, claim
from semipd_agent.partitioner.mps.green import Green, Refused
from semipd_agent.partitioner.mps.ladder import Timing, implausible
from semipd_agent.partitioner.mps.prober import ProbeFailed, Prober
from semipd_agent.partitioner.mps.programs import Programs
from semipd_agent.tasks import back_off

log = logging.getLogger(__name__)

SILENT_CHECKS = 2
"""Unanswered checks in a row before a daemon counts as lost."""
GIVE_UP = 5
"""Losses in a row after which the GPU, not the daemon, is at fault."""


@dataclass(frozen=True)
class Loss:
    problem: Problem
    clients_live: bool = False
    """Does the old server still serve?"""


@dataclass(frozen=True)
class ClientList:
    asked: float
    """CLOCK_MONOTONIC seconds just before the daemon was asked."""
    pids: frozenset[int]


@dataclass
class _Retired:
    """A daemon that is no longer in force, but whose server still has clients of ours."""

    daemon: Daemon
    workers: frozenset[int]
    since: float | None = None
    """When its successor came into force; None: there is none yet."""


class NotEnforcing(Exception):
    """The percentages have no effect."""


class Keeper:
    def __init__(
        self,
        programs: Programs,
        children: Children,
        base: Path,
        clock: Clock,
        timing: Timing,
        wants_green: bool = False,
    ) -> None:
        """`wants_green`: find out whether rungs can be green contexts."""
        self._wants_green = wants_green
        self.green: Green | None = None
        """What the self-test found, once; None: not asked for, not known yet, or refused."""
        self.green_refused: Refused | None = None
        self._programs = programs
        self._children = children
        self._base = base
        self._clock = clock
        self._timing = timing
        self._prober = Prober(programs, children, timing)
        self._private: Path | None = None
        self._numbers = itertools.count(1)
        self._wake = asyncio.Event()
        self._why_suspect = ""
        self._ends: dict[int, asyncio.Task[None]] = {}
        """Clients that are being ended, by PID."""
        self._condemned = ""
        self._retired: list[_Retired] = []
        self._starting: Daemon | None = None
        self.daemon: Daemon | None = None
        """The one in force; None while there is none."""
        self.incarnation = 0
        """Counts the daemons that came into force."""
        self.losses = 0
        self.total = 0
        self.counts: Mapping[int, int] = {}
        """SMs by rung, measured once: they are the hardware's."""
        self.clients: ClientList | None = None
        """None: not known yet."""
        self.workers: frozenset[int] = frozenset()
        """PIDs of the engine's workers that live, and of those that are about to leave; kept by `backend`."""
        self.problem: Problem | None = None
        self.lost: Problem | None = None
        """What ended the daemon before the one in force."""

    @property
    def begun(self) -> bool:
        """Was a daemon ever started?"""
        return self._private is not None

    def suspect(self, why: str) -> None:
        """Something may have harmed the server: look at once, with a probe."""
        self._why_suspect = why
        self._wake.set()

    def condemn(self, why: str) -> None:
        """The server has harmed a client: give it up at once."""
        self._condemned = why
        self._wake.set()

    def terminate(self, clients: Iterable[int]) -> None:
        """These workers will be killed (PIDs): have the daemon end their work first, for a client that dies with
        kernels in flight may take the server with it. All of them side by side and at once, whatever the daemon is
        being asked: each has as long as it would have alone."""
        daemon = self.daemon
        if daemon is None:
            return  # their server is gone, or about to go
        for client in set(clients) - self._ends.keys():
            self._ends[client] = asyncio.create_task(self._end(daemon, client))

    async def _end(self, daemon: Daemon, client: int) -> None:
        try:
            await daemon.terminate(client)
        except ControlTimeout as e:
            if daemon is self.daemon:
                self.condemn(f"a worker that hangs cannot be ended: {e}")
        except ControlError as e:  # it has gone meanwhile, or belongs to a daemon before this one
            if daemon is self.daemon:
                self.suspect(f"the kill of worker {client} ({e})")
        else:
            log.info("MPS ended its client %d, which would not end by itself", client)
        finally:
            del self._ends[client]

    async def evict(self) -> None:
        """End the work of every worker that lives, in bounded time: all of them are about to be killed."""
        self.terminate(self.workers)
        await asyncio.gather(*self._ends.values(), return_exceptions=True)

    async def run(self) -> None:
        """Keep a daemon alive until cancelled."""
        in_a_row = 0
        while True:
            began = self._clock.monotonic()
            try:
                await self._start()
            except (StartFailed, ProbeFailed) as e:
                loss = Loss(Problem(PartitionReason.MPS_START_FAILED, str(e)))
            except NotEnforcing as e:
                loss = Loss(Problem(PartitionReason.MPS_NOT_ENFORCING, str(e)))
            else:
                loss = await self._watch()
                self.losses += 1
                self.lost = loss.problem
            in_a_row = 1 if self._clock.monotonic() - began >= self._timing.healthy else in_a_row + 1
            await self._lose(loss, in_a_row)
            if in_a_row > 1:
                await asyncio.sleep(back_off(1.0, in_a_row - 2, self._timing.longest_delay))

    async def close(self) -> None:
        """End everything, each step in bounded time, and remove the directories."""
        living, self.daemon, self._starting = (self.daemon, self._starting), None, None
        for end in list(self._ends.values()):
            end.cancel()
        await asyncio.gather(*self._ends.values(), return_exceptions=True)
        for daemon in filter(None, living):
            await daemon.quit()
        for retired in self._retired:
            await retired.daemon.destroy()
        self._retired = []
        if self._private is not None:
            await asyncio.to_thread(shutil.rmtree, self._private, ignore_errors=True)
            self._private = None

    async def _start(self) -> None:
        if self._private is None:
            self._private = await asyncio.to_thread(claim, self._base)
        daemon = self._starting = Daemon(
            self._programs, self._children, self._private / str(next(self._numbers)), self._timing
        )
        await daemon.start()
        if self.counts:
            await self._prober.serves(daemon)
        else:
            await self._measure(daemon)
        self._wake.clear()
        self._why_suspect = self._condemned = ""
        self.daemon, self._starting = daemon, None
        self.clients, self.problem = None, None
        self.incarnation += 1
        for retired in self._retired:
            retired.since = self._clock.monotonic()
        log.info("MPS daemon %d serves (incarnation %d, server %d)", daemon.pid, self.incarnation, daemon.server)

    async def _measure(self, daemon: Daemon) -> None:
        total = await self._prober.total()
        counts = await self._prober.counts(daemon)
        if said := implausible(total, counts):
            raise NotEnforcing(said)
        if self._wants_green and self.green is None and self.green_refused is None:
            await self._try_green(daemon)
        self.total, self.counts = total, counts
        log.info("of %d SMs each rung has %s", total, ", ".join(f"{p} %: {n}" for p, n in sorted(counts.items())))

    async def _try_green(self, daemon: Daemon) -> None:
        """Once, while nobody else is on the device. Raises `ProbeFailed` where it has cost the server."""
        try:
            self.green = await self._prober.green(daemon)
        except Refused as refused:
            log.error("%s", refused)
            self.green_refused = refused
            await self._prober.serves(daemon)
        else:
            rungs = ", ".join(map(str, self.green.rungs))
            log.info("mps-green: rungs %s; that lanes share no SM: %s", rungs, self.green.why)

    async def _watch(self) -> Loss:
        """Until the daemon in force is lost."""
        assert self.daemon is not None
        daemon, silent, initializing = self.daemon, 0, 0.0
        while True:
            if await self._pause(daemon):
                message = (
                    f"the MPS control daemon ended{daemon.last_words()}; its server serves on until it is replaced"
                )
                return Loss(Problem(PartitionReason.MPS_DAEMON_DIED, message), clients_live=True)
            try:
                asked = self._clock.monotonic()
                status = await daemon.control.server_status(daemon.server)
                self.clients = ClientList(asked, frozenset(await daemon.control.clients(daemon.server)))
                silent = 0
            except ControlTimeout as e:
                if (silent := silent + 1) >= SILENT_CHECKS:
                    return Loss(Problem(PartitionReason.MPS_NOT_RESPONDING, str(e)))
                continue
            except ControlError as e:
                if daemon.dead:
                    continue
                return Loss(Problem(PartitionReason.MPS_SERVER_FAULT, f"the MPS server is gone: {e}"))
            now = self._clock.monotonic()
            initializing = (initializing or now) if status is ServerStatus.INITIALIZING else 0.0
            if status is ServerStatus.FAULT or (initializing and now - initializing > self._timing.initializing):
                said = f"the MPS server is in state {status}{daemon.last_words()}; all of its clients are lost"
                return Loss(Problem(PartitionReason.MPS_SERVER_FAULT, said))
            if harm := await self._harmed(daemon):
                return Loss(Problem(PartitionReason.MPS_SERVER_FAULT, harm))
            await self._end_retired()

    async def _harmed(self, daemon: Daemon) -> str:
        """Follow each suspicion. Returns what has harmed the server."""
        if self._condemned:
            return self._condemned
        if why := self._why_suspect:
            self._why_suspect = ""
            try:
                await self._prober.serves(daemon)
            except ProbeFailed as e:
                return f"after {why}: {e}"
            log.info("the MPS server serves on after %s", why)
        return ""

    async def _pause(self, daemon: Daemon) -> bool:
        """Wait for the next check, or a reason to look at once. Has the daemon ended?"""
        wake = asyncio.create_task(self._wake.wait())
        death = asyncio.create_task(daemon.died(self._timing.check))
        try:
            await asyncio.wait({wake, death}, return_when=asyncio.FIRST_COMPLETED)
            self._wake.clear()
            return daemon.dead
        finally:
            for task in (wake, death):
                task.cancel()
            await asyncio.gather(wake, death, return_exceptions=True)

    async def _lose(self, loss: Loss, in_a_row: int) -> None:
        problem = loss.problem
        if in_a_row >= GIVE_UP and self.incarnation > 0:
            message = f"MPS was lost {in_a_row} times in a row, the last time: {problem.reason}: {problem.message}"
            problem = Problem(PartitionReason.GPU_UNHEALTHY, message)
        log.error("%s: %s", problem.reason, problem.message)
        daemon, self.daemon = self.daemon or self._starting, None
        self._starting = None
        self.problem = problem
        if daemon is None:
            return
        if loss.clients_live:
            self._retired.append(_Retired(daemon, self.workers))
        else:
            await daemon.destroy()

    async def _end_retired(self) -> None:
        """End old servers that our workers have left, or that were given time enough."""
        now = self._clock.monotonic()
        for each in list(self._retired):
            late = each.since is not None and now - each.since >= self._timing.retired
            if late or not each.workers & self.workers:
                self._retired.remove(each)
                with suppress(OSError):
                    await each.daemon.destroy()
