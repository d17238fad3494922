"""Keeps the engine's launcher running: start, restart with back-off, crash loops, stop. Knows no split and no model.

The launcher runs in a session of its own, so that a signal to the agent's terminal or group does not reach it, and the
whole group can be killed once it is gone. It restarts the engine's other processes itself.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from semipd_agent.clock import Clock
from semipd_agent.reaper import Reaper, die_with_parent
from semipd_agent.tasks import back_off
from semipd_engine.contract import END_API

log = logging.getLogger(__name__)

FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0
HEALTHY_AFTER = 60.0
"""A launcher that lived this long (s) starts with a clean record."""
REFUSED = 2
"""Exit status by which the launcher says that another start cannot help."""
CRASH_LOOP_EXITS = 3
"""Short lives in a row that make a crash loop."""
HURRY_SECONDS = 5.0
LAST_WORDS_SECONDS = 1.0
"""For what a launcher that has ended still has in its pipe; a grandchild may hold the other end open."""
OUTPUT_LINES = 20


class Supervisor:
    def __init__(
        self,
        command: Sequence[str],
        reaper: Reaper,
        clock: Clock,
        *,
        cpus: Sequence[int] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        """`cpus`: CPU numbers that the launcher and its children start on; empty: all that the agent may use."""
        self._command = list(command)
        self._cpus = tuple(cpus)
        self._reaper = reaper
        self._clock = clock
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._last_words = ""
        self._life_began = clock.monotonic()
        self.restarts = 0
        self.short_lives = 0
        self.last_exit: int | None = None

    @property
    def started(self) -> bool:
        """Has it been asked to run?"""
        return self._task is not None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def crash_loop(self) -> bool:
        """The last lives were short, and the present one is not long enough yet to say that it is over."""
        return self.short_lives >= CRASH_LOOP_EXITS and not (
            self.running and self._clock.monotonic() - self._life_began >= HEALTHY_AFTER
        )

    @property
    def refused(self) -> bool:
        """The last life said that another cannot help; the present one is a try, in case the folder was mended."""
        return self.last_exit == REFUSED

    def served(self) -> None:
        """The engine answers: a refusal before it says nothing any more."""
        if self.refused:
            self.last_exit = None

    @property
    def message(self) -> str:
        """Why the launcher is not running, or cannot serve, with the last line that it wrote."""
        if self.last_exit is None or (self.running and not self.refused):
            return ""
        how = f"was killed by {signal.Signals(-self.last_exit).name}" if self.last_exit < 0 else "exited with "
        how += str(self.last_exit) if self.last_exit >= 0 else ""
        last = f": {self._last_words}" if self._last_words else ""
        # A refusal is one, however often it is tried whether the folder was mended: the status does not change with it.
        times = f" ({self.short_lives} times in a row)" if self.short_lives > 1 and not self.refused else ""
        return f"the engine's launcher {how}{times}{last}"

    def start(self) -> None:
        """Start the launcher and keep it running until `stop`. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="supervisor")

    async def stop(self, patience: float, before_kill: Callable[[], Awaitable[None]]) -> None:
        """SIGTERM, wait for the drain at most `patience` seconds, then kill what is left of the group; `before_kill`
        is awaited before that, if the launcher still runs."""
        self._stopping = True
        self._signal(signal.SIGTERM)
        if self._task is not None:
            if not self.running:
                self._task.cancel()  # it waits for its next try
            await asyncio.wait({self._task}, timeout=patience)
        if self.running:
            await before_kill()
        self.kill()
        if self._task is not None:
            _, pending = await asyncio.wait({self._task}, timeout=HURRY_SECONDS)
            if pending:
                self._task.cancel()
                await asyncio.wait(pending, timeout=HURRY_SECONDS)

    def hurry(self) -> None:
        """A second SIGTERM: tell the launcher, and kill the group soon after."""
        self._signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(HURRY_SECONDS, self.kill)

    def end_api(self) -> bool:
        """Have the launcher kill its api, and so start another. False: no launcher runs, or all of it is to end."""
        if self._stopping or not self.running:
            return False
        self._signal(END_API)
        return True

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _run(self) -> None:
        while not self._stopping:
            self._life_began = self._clock.monotonic()
            try:
                await self._run_once()
            except Exception as e:  # whatever goes wrong here must not be the end of restarts
                log.exception("the launcher cannot be watched")
                self._tail.append(f"{type(e).__name__}: {e}"[:500])
                self.kill()
                self._process = None
            if self._stopping:
                return
            lived = self._clock.monotonic() - self._life_began
            self.short_lives = 1 if lived >= HEALTHY_AFTER else self.short_lives + 1
            self.restarts += 1
            self._last_words = self._tail[-1] if self._tail else ""
            delay = back_off(FIRST_DELAY, self.short_lives - 1, LONGEST_DELAY)
            log.warning("%s; starting it again in %.0f s", self.message, delay)
            await asyncio.sleep(delay)

    async def _run_once(self) -> None:
        self._exited.clear()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220  asyncio's own would wait for the child; the reaper does
                self._command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=self._environment,
                preexec_fn=self._before_exec,  # a few system calls, and this thread is the only one that forks
            )
        except OSError as e:
            self.last_exit = 127
            self._tail.append(f"{self._command[0]}: {e.strerror}")
            return
        self._process = process
        self._reaper.adopt(process.pid, self._collect)
        log.info("engine launcher started, pid %d", process.pid)
        forward = asyncio.create_task(self._forward(process))
        try:
            await self._exited.wait()
            self.last_exit = process.returncode
            self.kill()  # what the launcher left behind would hold the sockets and the memory of the next one
            self._process = None  # from here on its number may belong to a stranger
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await forward
        finally:
            forward.cancel()

    def _before_exec(self) -> None:
        die_with_parent()
        signal.signal(END_API, signal.SIG_IGN)  # it would kill a launcher that does not listen yet
        if self._cpus:
            with suppress(OSError):  # the node took them away meanwhile: the engine takes what is left
                os.sched_setaffinity(0, self._cpus)

    def _collect(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._exited.set()

    async def _forward(self, process: subprocess.Popen[bytes]) -> None:
        """Pass the engine's stderr on to ours and keep its end for the report."""
        assert process.stderr is not None
        gone = False
        reader = asyncio.StreamReader(limit=1 << 20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), process.stderr
        )
        try:
            while line := await _line(reader):
                try:
                    gone or os.write(2, line)
                except OSError as e:  # nobody reads our stderr any more, or its disk is full: the engine goes on
                    gone = e.errno == errno.EPIPE
                if text := line.decode(errors="replace").strip():
                    self._tail.append(text[:500])
        finally:
            transport.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as e:
        return e.partial
    except asyncio.LimitOverrunError as e:
        return await reader.readexactly(e.consumed)
