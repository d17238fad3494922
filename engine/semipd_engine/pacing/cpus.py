"""The few things of this process that a pacer moves: its threads, their CPUs, and the CPU time they used."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from semipd_engine.pacing.page import PacingPage
from semipd_engine.pacing.turn_lock import TurnLock


class Processor(Protocol):
    """The pacer's view of the machine; tests have one of their own with a fake clock."""

    def monotonic_ns(self) -> int: ...

    def cpu_ns(self) -> int:
        """CPU time of all threads of this process."""

    def sleep(self, seconds: float) -> None: ...

    def heard(self) -> int:
        """Rings of the pacing page's bell so far."""

    def ring(self) -> None: ...

    def wait(self, heard: int, seconds: float) -> None:
        """Until the bell rings once more, or the time is up."""

    def set_threads(self, count: int) -> None: ...

    def pin(self, cpus: Sequence[int]) -> None:
        """Let every thread run on any of these CPUs. Raises OSError if none of them may be used."""

    def spread(self, cpus: Sequence[int]) -> int:
        """Pin each thread to one of these CPUs, the main thread to the first; how many there are. Raises OSError as
        `pin` does."""

    def try_lock(self) -> bool: ...

    def unlock(self) -> None: ...


def pin_all_threads(cpus: Sequence[int]) -> None:
    """Pin each thread of this process by its tid: sched_setaffinity(0) would move the calling one only. Each begins on
    one of its own, for the reason that `spread_all_threads` gives, and may then run on any. Raises OSError as
    sched_setaffinity does."""
    if len(cpus) > 1:
        spread_all_threads(cpus)
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread may end meanwhile
            os.sched_setaffinity(int(task.name), cpus)


def spread_all_threads(cpus: Sequence[int]) -> int:
    """Pin the main thread to the first CPU and the others to the next ones in turn; how many threads there are.

    A thread that slept while its mask was narrow wakes where it ran last, beside its sibling, and the kernel takes up
    to 10 ms to see that another CPU is idle: longer than a turn may last. Threads born later inherit the mask of the
    one that creates them. Whose CPU was taken away may run on the others. Raises OSError if none of them may be used.
    """
    main = os.getpid()
    others = sorted(int(task.name) for task in Path("/proc/self/task").iterdir() if int(task.name) != main)
    for number, tid in enumerate((main, *others)):
        with contextlib.suppress(ProcessLookupError):
            try:
                os.sched_setaffinity(tid, {cpus[number % len(cpus)]})
            except ProcessLookupError:
                raise
            except OSError:
                os.sched_setaffinity(tid, cpus)
    return 1 + len(others)


class OwnProcess:
    """`Processor` of the real machine."""

    def __init__(self, page: PacingPage, set_threads: Callable[[int], None]) -> None:
        self._lock = TurnLock(page.fd)
        self._bell = page.bell
        self._set_threads = set_threads

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def cpu_ns(self) -> int:
        return time.process_time_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def heard(self) -> int:
        return self._bell.heard

    def ring(self) -> None:
        self._bell.ring()

    def wait(self, heard: int, seconds: float) -> None:
        self._bell.wait(heard, seconds)

    def set_threads(self, count: int) -> None:
        self._set_threads(count)

    def pin(self, cpus: Sequence[int]) -> None:
        pin_all_threads(cpus)

    def spread(self, cpus: Sequence[int]) -> int:
        return spread_all_threads(cpus)

    def try_lock(self) -> bool:
        return self._lock.try_acquire()

    def unlock(self) -> None:
        self._lock.release()
