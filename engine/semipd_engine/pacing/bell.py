"""A bell between the phase workers: whoever ends a turn rings it, so that the other one need not poll.

A futex (futex(2)) on a word of the pacing page, shared between processes. A ring is never missed: the word counts, a
waiter says which count it has heard, and the kernel compares before it sleeps. Knows no turns.
"""

from __future__ import annotations

import ctypes
import platform

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_EVERYBODY = 2**31 - 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))


class Bell:
    def __init__(self, word: memoryview) -> None:
        """`word`: four writable bytes of shared memory, aligned. Raises OSError where no futex is known."""
        if platform.machine() not in _SYS_FUTEX:
            raise OSError(f"no futex is known for {platform.machine()}")
        self._number = _SYS_FUTEX[platform.machine()]
        self._count = ctypes.c_uint32.from_buffer(word)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall

    @property
    def heard(self) -> int:
        """The count so far: read it before looking at what the bell is about."""
        return self._count.value

    def ring(self) -> None:
        self._count.value += 1  # two at once may count as one: either wakes everybody
        self._futex(_FUTEX_WAKE, _EVERYBODY, None)

    def wait(self, heard: int, seconds: float) -> None:
        """Until somebody rings after `heard` was read, or the time is up."""
        timeout = _Timespec(int(seconds), int(seconds % 1 * 1e9))
        self._futex(_FUTEX_WAIT, heard, ctypes.byref(timeout))

    def _futex(self, operation: int, value: int, timeout: object) -> None:
        self._syscall(
            ctypes.c_long(self._number),
            ctypes.byref(self._count),
            ctypes.c_int(operation),
            ctypes.c_uint32(value),
            timeout,
            None,
            ctypes.c_uint32(0),
        )
