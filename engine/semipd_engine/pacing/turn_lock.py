"""A lock between processes that the kernel releases when its holder dies, however it dies.

A POSIX record lock on the pacing page's memfd: it belongs to the process, so it is not inherited over fork. It is also
released when the process closes *any* descriptor of that file; a worker holds exactly one and never closes it.
"""

from __future__ import annotations

import fcntl


class TurnLock:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def try_acquire(self) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError:
            return False
        return True

    def release(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 0)
