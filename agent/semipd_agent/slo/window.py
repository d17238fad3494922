"""Sliding window over finished requests: percentiles and attainment. Pure; the caller brings the time.

Exact quantiles over a bounded ring (`CAPACITY` newest samples): a pod finishes tens of requests a second at most, so a
sketch would save nothing. Knows no target and no split.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from semipd_agent.slo.load import Load
from semipd_agent.slo.preparation import Preparation
from semipd_engine.contract import Arrival, FinishedRequest, Observation

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


class RequestWindow:
    """Finished requests of the last `seconds`, fed from observations; survives a restart of the core."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._requests: deque[FinishedRequest] = deque(maxlen=CAPACITY)
        self.cursor = 0
        """Send as `GetSnapshot.since`."""
        self._newest = -1  # highest cursor seen, so that no request counts twice
        self._core_id = ""

    def add(self, o: Observation) -> None:
        """Take the requests of a reply to `GetSnapshot(since=self.cursor)`."""
        if o.core_id != self._core_id:  # a new core counts from 0 again
            self._core_id, self._newest = o.core_id, -1
            if self.cursor > 0 and not (o.finished and o.finished[0].cursor == 0):
                self.cursor = 0  # ask for all of its requests with the next tick
                self._expire(o.at)
                return
        fresh = [r for r in o.finished if r.cursor > self._newest]
        self._requests.extend(fresh)
        self._newest = max([self._newest, *(r.cursor for r in fresh)])
        self.cursor = o.next_cursor
        self._expire(o.at)

    def _expire(self, now: float) -> None:
        while self._requests and self._requests[0].finished_at < now - self.seconds:
            self._requests.popleft()

    def requests(self, now: float, seconds: float | None = None) -> tuple[FinishedRequest, ...]:
        """Requests that finished in the last `seconds` (default: all kept), oldest first. `now` is CLOCK_MONOTONIC."""
        self._expire(now)
        since = now - (self.seconds if seconds is None else seconds)
        return tuple(r for r in self._requests if r.finished_at >= since)


@dataclass(frozen=True)
class Evidence:
    """All that a policy may look at: requests that finished, what is there now, and what was learned of the load."""

    finished: tuple[FinishedRequest, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    """Of the last 60 s, oldest first."""
    waiting: tuple[float, ...] = ()
    """When the requests without a first token were received, oldest first."""
    held_back: bool = False
    """Requests wait and no prompt is being worked on: the batch or the cache is full, and only decode makes room."""
    observation: Observation | None = None
    load: Load | None = None
    late: float = math.inf
    """Who would have its first token later than so many seconds is refused (`admission`)."""
    preparation: Preparation | None = None
    """What stands between a decision and its split; None: nothing."""

    @classmethod
    def of(
        cls,
        o: Observation,
        finished: tuple[FinishedRequest, ...],
        load: Load | None = None,
        late: float = math.inf,
        preparation: Preparation | None = None,
    ) -> Evidence:
        waiting = [q.received_at for q in o.queue if q.first_token_at is None]
        waiting += [r.received_at for r in o.running if r.first_token_at is None]
        prefilling = any(r.uncomputed_tokens for r in o.running)
        held_back = bool(o.queue) and not prefilling
        return cls(finished, o.arrivals, tuple(sorted(waiting)), held_back, o, load, late, preparation)

    @property
    def prefill_load(self) -> float | None:
        """Prefill's utilisation if it had the whole device: work that arrived in the last minute over its time."""
        if self.load is None or self.observation is None or not self.arrivals:
            return None
        chunk = self.observation.prefill_chunk_tokens
        work = sum(self.load.work(a.prompt_tokens * self.load.uncached, chunk) for a in self.arrivals)
        return work / max(10.0, self.observation.at - self.arrivals[0].at)
