"""Whose turn it is where clients ask for more than is done at once. Pure; knows not what is asked for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """So many `places`, which items take in turns of their clients: who has fewest goes first, then who has waited for
    his turn the longest. The last free place is for a client that has none, so that nobody has them all."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: dict[int, deque[T]] = {}
        """By client, in the order of their turns; none is empty."""
        self._taken: Counter[int] = Counter()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, client: int, item: T) -> None:
        self._waiting.setdefault(client, deque()).append(item)

    def take(self) -> T | None:
        """The next one, which has a place from now on until its client is `done` with it; None: nobody may have one."""
        free = self._places - self._taken.total()
        may = [client for client in self._waiting if free > (1 if self._taken[client] else 0)]
        if not may:
            return None
        client = min(may, key=self._taken.__getitem__)
        queue = self._waiting.pop(client)
        item = queue.popleft()
        if queue:
            self._waiting[client] = queue  # behind the others
        self._taken[client] += 1
        return item

    def done(self, client: int) -> None:
        """It gives a place back."""
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]

    def remove(self, which: Callable[[T], bool]) -> list[T]:
        """Those that wait no longer."""
        removed: list[T] = []
        for client, queue in list(self._waiting.items()):
            if gone := [item for item in queue if which(item)]:
                removed += gone
                kept = deque(item for item in queue if not which(item))
                if kept:
                    self._waiting[client] = kept
                else:
                    del self._waiting[client]
        return removed
