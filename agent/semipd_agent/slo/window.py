"""Sliding window over finished requests: percentiles and attainment. Pure; the caller brings the time.

Exact quantiles over a bounded ring (`CAPACITY` newest samples): a pod finishes tens of requests a second at most, so a
sketch would save nothing. Knows no target and no split.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semipd_engine.contract import Arrival, EngineSnapshot, FinishedRequest

CAPACITY = 16_384
"""Most requests kept; above about 270 requests/s a window of 60 s is cut to the newest ones."""


def percentile(values: Iterable[float], p: float) -> float:
    """Nearest-rank percentile: the smallest value with at least p % of the values at or below it.

    Raises:
        ValueError: no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("percentile of no values")
    return ordered[max(1, math.ceil(p / 100 * len(ordered))) - 1]


def attainment(values: Sequence[float], target: float) -> float | None:
    """Share (0–1) of the values at or below `target`; None without values."""
    return sum(v <= target for v in values) / len(values) if values else None


class RequestWindow:
    """Finished requests of the last `seconds`, fed from the engine's snapshots; survives a restart of the core."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._requests: deque[FinishedRequest] = deque(maxlen=CAPACITY)
        self.cursor = 0
        """Send as `GetSnapshot.since`."""
        self._newest = -1  # highest cursor seen, so that no request counts twice

    def add(self, snapshot: EngineSnapshot) -> None:
        """Take the requests of a reply to `GetSnapshot(since=self.cursor)`."""
        if snapshot.next_cursor < self.cursor:  # a new core counts from 0 again: ask for all of its requests
            self.cursor, self._newest = 0, -1
            return
        fresh = [r for r in snapshot.finished if r.cursor > self._newest]
        self._requests.extend(fresh)
        self._newest = max([self._newest, *(r.cursor for r in fresh)])
        self.cursor = snapshot.next_cursor
        self._expire(snapshot.monotonic_time)

    def _expire(self, now: float) -> None:
        while self._requests and self._requests[0].finished_at < now - self.seconds:
            self._requests.popleft()

    def requests(self, now: float, seconds: float | None = None) -> tuple[FinishedRequest, ...]:
        """Requests that finished in the last `seconds` (default: all kept), oldest first. `now` is CLOCK_MONOTONIC."""
        self._expire(now)
        since = now - (self.seconds if seconds is None else seconds)
        return tuple(r for r in self._requests if r.finished_at >= since)

    def ttft(self, now: float, seconds: float) -> list[float]:
        return [r.ttft_seconds for r in self.requests(now, seconds) if r.ttft_seconds is not None]

    def tpot(self, now: float, seconds: float) -> list[float]:
        return [r.tpot_seconds for r in self.requests(now, seconds) if r.tpot_seconds is not None]


@dataclass(frozen=True)
class Evidence:
    """All that a policy may look at: requests that finished, and what is waiting now."""

    finished: tuple[FinishedRequest, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    """Of the last 60 s, oldest first."""
    waiting: int = 0
    oldest_wait_seconds: float = 0.0
    held_back: bool = False
    """Requests wait and no prompt is being worked on: the batch or the cache is full, and only decode makes room."""

    def waiting_since(self) -> list[float]:
        """Arrival times of the requests that still wait, oldest first, as far as they are known.

        Admission is first come, first served, so those that wait are the last to have arrived.
        """
        return [a.at for a in self.arrivals[-self.waiting :]] if self.waiting else []
