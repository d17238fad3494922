"""What else the machine runs while we measure, watched from a process of its own; how it is made to wait, and to rest.

``python -m bench.cpu.machine PID FILE`` adds a line a second: CLOCK_MONOTONIC, and how many tasks were running then
that do not belong to PID and its descendants. In a process of its own, so that looking through /proc never delays the
client whose clock is being read.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

BUSY = 2.5
"""A sample beside more strange tasks is marked."""
STALE_SECONDS = 10.0
"""A look that is older says nothing of a turn."""


@cache
def cpu_flags() -> frozenset[str]:
    """What this CPU offers, by the kernel's names."""
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    return next((frozenset(row.split()[2:]) for row in rows if row.startswith("flags")), frozenset())


@dataclass(frozen=True)
class Watch:
    file: Path

    def others(self, begin: float, end: float) -> float | None:
        """The mean between two times of CLOCK_MONOTONIC; of the last look before, if there was none between them. None
        where that is too long ago: the watcher has died."""
        rows = [row.split() for row in self.file.read_text().splitlines()] if self.file.exists() else []
        seen = [(float(row[0]), float(row[1])) for row in rows if len(row) == 2]
        if not seen or seen[-1][0] < end - STALE_SECONDS:
            return None
        found = [count for at, count in seen if begin <= at <= end] or [seen[-1][1]]
        return round(sum(found) / len(found), 2)


@contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    file = folder / "others"
    command = [sys.executable, "-m", "bench.cpu.machine", str(os.getpid()), str(file)]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=root, process_group=0)  # Ctrl-C is ours: it would end in a traceback
    try:
        yield Watch(file)
    finally:
        process.terminate()
        process.wait()


MOST_NICENESS = 20


@contextmanager
def foremost() -> Iterator[None]:
    """This process and all that it has started weigh 86 times as much as anybody else of the machine. Among themselves
    they share as ever: under a real-time priority whoever computes would keep whoever is woken waiting.

    Raises PermissionError of a user who may not.
    """
    _weigh(-MOST_NICENESS)
    try:
        yield
    finally:
        _weigh(MOST_NICENESS)


@contextmanager
def resting(pids: Iterable[int]) -> Iterator[None]:
    """None of these processes, nor of their children, runs meanwhile: an idle server of vLLM wakes 1,500 times a second
    on the CPUs that another one is measured on. Children go on before their parents, who might miss them."""
    stopped = [process for pid in pids for process in _tree(pid)]
    try:
        for process in stopped:
            _send(process, signal.SIGSTOP)
        yield
    finally:
        for process in reversed(stopped):
            _send(process, signal.SIGCONT)


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _weigh(nicer: int) -> None:
    """Who is gone meanwhile is left out. Where the kernel shares between sessions (autogroup, which can be switched
    while it runs), a task's own niceness counts within its session only: both are set."""
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(ProcessLookupError, FileNotFoundError):
            weigh_session(Path(f"/proc/{process.pid}/autogroup"), min(nicer, 0))
            for task in Path(f"/proc/{process.pid}/task").glob("*"):
                number = int(task.name)
                os.setpriority(os.PRIO_PROCESS, number, os.getpriority(os.PRIO_PROCESS, number) + nicer)


def weigh_session(file: Path, niceness: int) -> None:
    """Of a task's autogroup file (sched(7)). Where it is empty the task is of no session, as all are whom nobody since
    the machine's start has given one (setsid(2)): then its own niceness counts, and the kernel takes none for the
    group. What holds already isn't written: to everybody but root the kernel lends one write in a tenth of a second.

    Raises FileNotFoundError where there is no task, OSError where the kernel refuses.
    """
    told = file.read_text().split() if file.exists() else []
    if told and told[-1] != str(niceness):
        file.write_text(str(niceness))


def running(stat: str) -> bool:
    """Of a line of /proc/PID/task/TID/stat; the name in it may hold anything."""
    return stat.rpartition(")")[2].split()[0] == "R"


def others(pid: int) -> int:
    """Raises psutil.NoSuchProcess."""
    mine = 0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        for stat in Path(f"/proc/{process.pid}/task").glob("*/stat"):
            with suppress(OSError):
                mine += running(stat.read_text())
    everybody = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    return max(0, everybody - mine)


def main() -> None:
    pid, path = int(sys.argv[1]), sys.argv[2]
    with Path(path).open("a", buffering=1) as file, suppress(psutil.NoSuchProcess):
        while os.getppid() == pid:
            file.write(f"{time.monotonic()} {others(pid)}\n")
            time.sleep(1)


if __name__ == "__main__":
    main()
