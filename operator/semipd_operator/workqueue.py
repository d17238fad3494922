"""The queue between watches and workers: each key once, never two workers on one key, retries that back off.

It knows nothing of what the keys stand for.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple


class Key(NamedTuple):
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


MOST_DOUBLINGS = 16
"""A power of as many failures as a night brings is no float any more."""


def back_off(first: float, failures: int, longest: float) -> float:
    """Seconds to wait after so many failures before the newest one: `first`, doubled by each of them."""
    return min(longest, first * 2.0 ** min(failures, MOST_DOUBLINGS))


class WorkQueue:
    """`get`, work, then `done`, `wait` or `retry`. A key added while it is worked on has one more turn."""

    def __init__(self, first_delay: float = 1.0, longest_delay: float = 60.0, longest_wait: float = 15.0) -> None:
        self._first, self._longest, self._longest_wait = first_delay, longest_delay, longest_wait
        self._waiting: dict[Key, float] = {}
        """In order of arrival; the value is when the key was added."""
        self._active: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._waits: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._arrived = asyncio.Event()
        self._ended = time.monotonic()
        """When a key was last done with, whether or not it comes back."""

    def add(self, key: Key) -> None:
        if key in self._active:
            self._again.add(key)
            return
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._waiting.setdefault(key, time.monotonic())
        self._arrived.set()

    async def get(self) -> Key:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        key = next(iter(self._waiting))
        del self._waiting[key]
        self._active[key] = time.monotonic()
        return key

    def done(self, key: Key) -> None:
        self._failures.pop(key, None)
        self._waits.pop(key, None)
        self._release(key)

    def wait(self, key: Key) -> float:
        """Nothing failed, and what is not due yet no watch will tell: comes back, later each time, and soon enough."""
        self._failures.pop(key, None)
        return self._back(key, self._waits, self._longest_wait)

    def retry(self, key: Key) -> float:
        """Comes back after a delay that doubles with each failure; returns the delay in seconds."""
        return self._back(key, self._failures, self._longest)

    def _back(self, key: Key, counts: dict[Key, int], longest: float) -> float:
        count = counts[key] = counts.get(key, 0) + 1
        delay = back_off(self._first, count - 1, longest)
        if not self._release(key):
            self._timers[key] = asyncio.get_running_loop().call_later(delay, self._due, key)
        return delay

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _release(self, key: Key) -> bool:
        self._active.pop(key, None)
        self._ended = time.monotonic()
        if key not in self._again:
            return False
        self._again.discard(key)
        self.add(key)
        return True

    def __len__(self) -> int:
        return len(self._waiting) + len(self._active)

    def stalled_seconds(self) -> float:
        """How long no key was done with while there were some; a long queue that moves is not stalled."""
        now = time.monotonic()
        oldest = min([*self._waiting.values(), *self._active.values()], default=now)
        return now - max(oldest, self._ended)
