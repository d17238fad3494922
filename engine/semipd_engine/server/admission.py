"""Who is let in: readiness, back-pressure and draining. Pure, on a clock that is handed in; knows no sockets."""

from __future__ import annotations

from collections.abc import Callable

from semipd_engine.contract import EngineState
from semipd_engine.ipc.messages import CoreState
from semipd_engine.server.errors import ApiError, unavailable

OUTAGE_GRACE_SECONDS = 2.0
"""An outage of core shorter than this changes nothing for clients (probes included)."""
SILENCE_SECONDS = 5.0
"""Core reports every second; silent for this long it counts as away."""
ENDPOINT_LAG_SECONDS = 5.0
"""After SIGTERM requests still arrive for a while: endpoints and proxies learn of the end with a delay."""


class Admission:
    """All times are CLOCK_MONOTONIC seconds."""

    def __init__(self, max_queued: int, clock: Callable[[], float]) -> None:
        self._max_queued = max_queued
        self._clock = clock
        self._ready_until: float | None = None  # None: never ready so far
        self._ready = False
        self._heard_at = clock()
        self._message = "the engine is starting"
        self._core_draining = False
        self._drain_started: float | None = None
        self.prefilling = 0

    def core_state(self, state: CoreState) -> None:
        self._expire()
        self._heard_at = self._clock()
        self._core_draining = state.state == EngineState.DRAINING
        self.prefilling = state.prefilling
        self._message = state.message or f"the engine is {state.state}"
        self._set(state.ready)

    def core_lost(self) -> None:
        self._expire()
        self._message = "the scheduler is restarting"
        self.prefilling = 0
        self._set(False)

    def start_drain(self) -> None:
        if self._drain_started is None:
            self._drain_started = self._clock()

    @property
    def draining(self) -> bool:
        return self._drain_started is not None

    def not_ready_reason(self) -> str | None:
        """For probes: None while ready. Draining is not ready, from its first moment."""
        if self.draining or self._core_draining:
            return "the server is draining"
        return self._outage()

    def check(self, waiting: int) -> None:
        """Let one more request in, or raise `ApiError`: 503 while not ready or drained, 429 with a full queue.

        `waiting`: sequences admitted without a first token, those that core prefills right now included.
        """
        lag = 0.0 if self._drain_started is None else self._clock() - self._drain_started
        if lag >= ENDPOINT_LAG_SECONDS or self._core_draining:
            raise unavailable("the server is shutting down; send the request again, to another replica", "draining")
        if reason := self._outage():
            raise unavailable(f"not ready: {reason}; try again", "not_ready")
        queued = max(0, waiting - self.prefilling)
        if queued >= self._max_queued:
            raise ApiError(
                429,
                f"{queued} requests are waiting and the limit is {self._max_queued} (--max-queued-requests); try again",
                kind="rate_limit_error",
                code="queue_full",
                retry_after=1,
            )

    def _outage(self) -> str | None:
        self._expire()
        if self._ready or (self._ready_until is not None and self._clock() - self._ready_until < OUTAGE_GRACE_SECONDS):
            return None
        return self._message

    def _expire(self) -> None:
        """A core that fell silent counts as away since the moment it should have spoken."""
        deadline = self._heard_at + SILENCE_SECONDS
        if self._ready and self._clock() > deadline:
            self._ready, self._ready_until = False, deadline
            self._message = f"the scheduler has been silent for more than {SILENCE_SECONDS:g} s"

    def _set(self, ready: bool) -> None:
        if self._ready and not ready:
            self._ready_until = self._clock()
        self._ready = ready
