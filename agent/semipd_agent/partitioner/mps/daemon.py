"""One incarnation of the MPS control daemon: fresh directories, the daemon as a child, its server, and their end.

It never comes back to life: a new incarnation has new directories, so stale sockets and pid files mean nothing. They
lie in one directory of the agent's (`claim`). It knows no rung and no engine.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from semipd_agent.children import Child, Children
from semipd_agent.partitioner.mps.control import ControlClient, ControlError, ServerStatus
from semipd_agent.partitioner.mps.ladder import Timing
from semipd_agent.partitioner.mps.programs import Programs, environment, surroundings

_POLL_SECONDS = 0.1
_PREFIX = "mps-"


class StartFailed(Exception):
    """The daemon or its server did not come up; the message has what the daemon said."""


class Daemon:
    def __init__(self, programs: Programs, children: Children, folder: Path, timing: Timing) -> None:
        """`folder`: does not exist yet; short, for the daemon's socket lies two levels below it."""
        self._programs = programs
        self._children = children
        self._timing = timing
        self.folder = folder
        self.pipe, self.log = folder / "p", folder / "l"
        self.control = ControlClient(programs.control, self.variables(), children, timing.command)
        self._child: Child | None = None
        self.server = 0
        """PID of the server; 0 before `start`."""

    def variables(self, percent: int | None = None) -> dict[str, str]:
        return environment(self.pipe, self.log, percent)

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    @property
    def dead(self) -> bool:
        return self._child is None or self._child.exited.is_set()

    async def died(self, seconds: float) -> bool:
        """Has the daemon ended within `seconds`?"""
        return self._child is None or await self._child.wait(seconds)

    async def start(self) -> None:
        """Start the daemon and its server. Raises `StartFailed`; then `destroy` is still due."""
        for directory in (self.folder, self.pipe, self.log):
            directory.mkdir(mode=0o700)
        environment = surroundings(self.variables())
        environment["PATH"] = f"{Path(self._programs.server).parent}:{environment.get('PATH', '')}"  # it looks there
        try:
            self._child = self._children.start([self._programs.control, "-f"], environment, self.log / "daemon.out")
        except OSError as e:
            raise StartFailed(f"{self._programs.control} cannot be started: {e.strerror}") from e
        await self._until(self._answers, self._timing.answer, "the MPS control daemon does not answer")
        try:
            await self.control.start_server(os.getuid(), self._timing.server)
        except ControlError as e:
            raise StartFailed(f"no MPS server: {e}{self.last_words()}") from None
        await self._until(self._serves, self._timing.server, "the MPS server does not become ACTIVE")

    async def terminate(self, client: int) -> None:
        """End a client's work before its process is killed. Raises `ControlError`, `ControlTimeout`."""
        await self.control.terminate_client(self.server, client, self._timing.terminate)

    async def quit(self) -> None:
        """Ask the daemon to end, then see to it. For a daemon whose clients have left; takes a few seconds at most."""
        if not self.dead:
            with suppress(ControlError):
                await self.control.quit()
                await self.died(self._timing.end)
        await self.destroy()

    async def destroy(self) -> None:
        """End daemon and server now, whatever their clients do, and remove the directories."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._child is not None:
                self._child.signal_group(number)
            _signal(self.server, number, self._programs.server)
            if await self.died(self._timing.end) and not _is_ours(self.server, self._programs.server):
                break
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    def last_words(self) -> str:
        """The end of what daemon and server logged, for a message; empty: nothing."""
        for name in ("server.log", "control.log", "daemon.out"):
            with suppress(OSError):
                if lines := (self.log / name).read_text(errors="replace").split("\n"):
                    said = [line.strip() for line in lines if line.strip()]
                    if said:
                        return f" ({name}: {said[-1][:300]})"
        return ""

    async def _answers(self) -> bool:
        await self.control.default_percentage()
        return True

    async def _serves(self) -> bool:
        servers = await self.control.servers()
        self.server = servers[0] if servers else 0
        return bool(servers) and await self.control.server_status(servers[0]) is ServerStatus.ACTIVE

    async def _until(self, condition: Callable[[], Awaitable[bool]], seconds: float, failure: str) -> None:
        problem = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    if self.dead:
                        status = self._child.status if self._child else None
                        raise StartFailed(f"the MPS control daemon ended with exit status {status}{self.last_words()}")
                    try:
                        if await condition():
                            return
                    except ControlError as e:
                        problem = f": {e}"
                    await asyncio.sleep(_POLL_SECONDS)
        raise StartFailed(f"{failure} within {seconds:g} s{problem}{self.last_words()}")


def _is_ours(pid: int, program: str) -> bool:
    """Is this process still the server that we know by its number? A number may be given anew."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return pid > 0 and any(Path(os.fsdecode(each)).name == Path(program).name for each in arguments if each)


def _signal(pid: int, number: signal.Signals, program: str) -> None:
    if _is_ours(pid, program):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def claim(base: Path) -> Path:
    """A private directory below `base` (mode 0700), locked for this process's life. Those of ours that nobody holds any
    more are removed: a killed agent cannot clean up, and its volume may outlive it. Raises OSError."""
    for old in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if old.stat().st_uid == os.getuid() and (lock := _lock(old)) is not None:
                shutil.rmtree(old, ignore_errors=True)
                os.close(lock)
    while True:
        private = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        # Until it is locked, another agent that begins just now takes it for one of the dead, and removes it.
        with suppress(FileNotFoundError):
            if _lock(private) is not None and private.exists():
                return private


def _lock(folder: Path) -> int | None:
    """Lock a directory; the descriptor stays open, so the lock lasts as long as this process. None: another has it.
    Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(descriptor)
        if isinstance(e, BlockingIOError):
            return None
        raise
    return descriptor
