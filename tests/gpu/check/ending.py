"""How a part of the check ends before its time: by a word first, and by force when that had no effect.

A part ends what it started: its engine, and MPS by MPS's own order. Killing all of it at once would leave MPS's daemon,
which has a session of its own, on the GPU with nobody to end it. Standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

REST_SECONDS = 10.0
"""For what a killed part had started: the process that holds MPS ends it when its input ends (`daemon`)."""
LOOK_SECONDS = 0.05


class Interruption:
    """SIGINT and SIGTERM from here on: the first is kept, none ends this process. One that was ignored before (nohup,
    a shell's background) stays so."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)

    @property
    def status(self) -> int:
        """Exit status by a shell's convention; 0: nobody interrupted."""
        return 128 + self.signal if self.signal is not None else 0


def wait(process: subprocess.Popen[bytes], seconds: float, given_up: Callable[[], bool] = lambda: False) -> bool:
    """Has it ended within `seconds`, and before `given_up`?"""
    return _within(seconds, lambda: process.poll() is not None or given_up()) and process.poll() is not None


def end(process: subprocess.Popen[bytes], patience: float, rest: float = REST_SECONDS) -> None:
    """SIGTERM to a part that leads its session; after `patience` seconds SIGKILL to it alone, and after `rest` seconds
    more to whatever of its session is left. Of one that has ended what is left is killed at once."""
    process.terminate()
    if not wait(process, patience):
        process.kill()
        process.wait()
        _within(rest, lambda: not session(process.pid))
    for pid in session(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """Processes of a session, without those that have ended and that nobody has asked after."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(of) == leader and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not (over := done()) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    return over
