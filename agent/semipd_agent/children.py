"""Short-lived and long-lived child processes of the agent, none of which can hang it. Knows no program.

asyncio's own subprocesses wait for their child, and so would take part in the reaper's business; here the `Reaper`
collects, and the exit is an event. Every child runs in a session of its own, ends with us, and is killed as a group.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from semipd_agent.reaper import Reaper, die_with_parent

_MOST_OUTPUT = 1 << 20


class ChildTimeout(Exception):
    """A command did not end in its time; it was killed."""


@dataclass(frozen=True)
class Completed:
    status: int
    """Exit status; minus the signal's number where one ended it."""
    output: str
    """Standard output and error, together."""


class Child:
    """A started process. Its exit status is known once `exited` is set."""

    def __init__(self, process: subprocess.Popen[bytes], reaper: Reaper) -> None:
        self._process = process
        self.exited = asyncio.Event()
        reaper.adopt(process.pid, self._collect)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.returncode

    async def wait(self, seconds: float) -> bool:
        """Has it ended within `seconds`?"""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.exited.wait()
        return self.exited.is_set()

    def signal_group(self, number: signal.Signals) -> None:
        """To the child and those that it started; a no-op once it has ended, for its number may be given anew."""
        if self.exited.is_set():
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _collect(self) -> None:
        if self._process.poll() is not None:
            self.exited.set()


class Children:
    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper

    def start(self, command: Sequence[str], env: Mapping[str, str], output: Path) -> Child:
        """A process that runs on; what it prints goes to the file `output`. Raises OSError."""
        with output.open("ab") as file:
            return Child(self._spawn(command, env, file), self._reaper)

    async def run(
        self, command: Sequence[str], env: Mapping[str, str], *, seconds: float, stdin: str = ""
    ) -> Completed:
        """Run to the end and return what it printed. `stdin` is short (a pipe's buffer at most).

        Raises:
            ChildTimeout: it took longer than `seconds`. It was killed; if even that takes effect late, the
                reaper collects it later.
            OSError: it could not be started.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(reading, "rb", buffering=0) as answer:
            with os.fdopen(writing, "wb") as output:
                process = self._spawn(command, env, output, stdin=subprocess.PIPE)
            child = Child(process, self._reaper)
            try:
                assert process.stdin is not None
                with suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(stdin.encode())
                if not await child.wait(seconds):
                    raise ChildTimeout(f"{Path(command[0]).name} did not answer within {seconds:g} s")
            finally:
                child.signal_group(signal.SIGKILL)
            os.set_blocking(reading, False)  # a grandchild may hold the other end open
            text = answer.read(_MOST_OUTPUT) or b""
        assert child.status is not None
        return Completed(child.status, text.decode(errors="replace"))

    @staticmethod
    def _spawn(
        command: Sequence[str], env: Mapping[str, str], output: IO[bytes], stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(command),
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
            preexec_fn=die_with_parent,  # one prctl, and this thread is the only one that forks
        )
