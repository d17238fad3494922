"""Is the engine ready to serve, and can it be reached? Pure; short outages are bridged, so that a respawned worker
drops no endpoint."""

from __future__ import annotations

from semipd_agent.readback import STALE_AFTER, workers_by_phase
from semipd_engine.contract import EngineSnapshot, EngineState

BRIDGED_SECONDS = 2.0
POLL_SECONDS = 1.0
"""Snapshots come once in this time: an outage is seen up to this much longer than it lasts."""


def engine_ready(snapshot: EngineSnapshot | None, now: float) -> bool:
    """Core answers, and each phase has a worker that proved itself and still beats."""
    if snapshot is None or now - snapshot.monotonic_time > BRIDGED_SECONDS:
        return False
    if snapshot.state not in (EngineState.READY, EngineState.DEGRADED):
        return False
    return all(
        any(w.heartbeat_age_seconds < STALE_AFTER for w in workers) for workers in workers_by_phase(snapshot).values()
    )


class ReadyGate:
    """Readiness with memory. False from `close` on."""

    def __init__(self) -> None:
        self._last_ready: float | None = None
        self.closed = False

    def update(self, snapshot: EngineSnapshot | None, now: float, *, api_answers: bool = True) -> None:
        if api_answers and engine_ready(snapshot, now):
            self._last_ready = now

    def close(self) -> None:
        self.closed = True

    @property
    def served(self) -> bool:
        """Was it ready once? Stays true when closed, and what is heard then counts."""
        return self._last_ready is not None

    def ready(self, now: float) -> bool:
        last = self._last_ready
        return not self.closed and last is not None and now - last <= BRIDGED_SECONDS + POLL_SECONDS
