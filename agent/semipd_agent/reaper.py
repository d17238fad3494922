"""Collects children as PID 1 must, without stealing the exit status of a child that someone here waits for.

Strangers (orphans that the kernel gave to us) are reaped; our own children are only pointed out to their owner. A plain
``waitpid(-1)`` would take both, and `subprocess.Popen` would then report 0 for every exit.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphans of our descendants become our children, as they do for PID 1. Raises OSError."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """For a child between fork and exec: SIGTERM when the thread that forked it ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


class Reaper:
    """Call `reap` on SIGCHLD and now and then (signals coalesce). All calls in one thread."""

    def __init__(self) -> None:
        self._owners: dict[int, Callable[[], object]] = {}
        self.strangers = 0

    def adopt(self, pid: int, collect: Callable[[], object]) -> None:
        """`collect` must wait for `pid` itself (``Popen.poll``); it is called once, when the child has exited."""
        self._owners[pid] = collect

    def reap(self) -> None:
        """Take every exited child there is now."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            collect = self._owners.pop(found.si_pid, None)
            if collect is not None:
                collect()
                continue
            try:
                os.waitpid(found.si_pid, os.WNOHANG)
            except ChildProcessError:
                continue
            self.strangers += 1
