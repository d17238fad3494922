"""Who is let in: readiness, back-pressure and draining. Pure, on a clock that is handed in; knows no sockets."""

from __future__ import annotations

from collections.abc import Callable

from semipd_engine.contract import EngineState
from semipd_engine.ipc.requests import CoreState, Gate
from semipd_engine.server.errors import Code, bad_request, queue_full, unavailable
from semipd_engine.server.protocol import MAX_CHOICES

OUTAGE_GRACE_SECONDS = 2.0
"""While core is away for less than this, nothing changes for clients (probes included)."""
SILENCE_SECONDS = 5.0
"""Core reports every second; silent for this long it counts as away."""
ENDPOINT_LAG_SECONDS = 5.0
"""After SIGTERM requests still arrive for a while: endpoints and proxies learn of the end with a delay."""

STARTING = CoreState(ready=False, state=EngineState.STARTING, message="the engine is starting")


class Admission:
    """Core decides (`CoreState.ready`, `.admitting`); while core is away its last word stands for the grace.

    All times are CLOCK_MONOTONIC seconds.
    """

    def __init__(self, max_queued: int, clock: Callable[[], float]) -> None:
        self._max_queued = max_queued
        self._clock = clock
        self._state = STARTING
        self._heard_at = clock()
        self._lost_at: float | None = None
        self._before = STARTING
        """What core said before it went away; in force until `_lost_at` + grace."""
        self._drain_started: float | None = None

    def core_state(self, state: CoreState) -> None:
        self._notice_silence()
        self._heard_at = self._clock()
        self._state = state
        if state.ready and state.admitting:
            self._lost_at = None

    @property
    def gate(self) -> Gate:
        """Core's last word; while it is away nobody is refused by figures that nobody renews."""
        return self._state.gate

    def core_lost(self) -> None:
        self._notice_silence()
        self._lose(self._clock(), "the scheduler is restarting")

    def start_drain(self) -> None:
        if self._drain_started is None:
            self._drain_started = self._clock()

    @property
    def draining(self) -> bool:
        """A signal came: who can go elsewhere should."""
        return self._drain_started is not None

    def not_ready_reason(self) -> str | None:
        """For probes: None while ready. Draining is not ready, from its first moment."""
        if self.draining:
            return "the server is draining"
        if self._believed(lambda state: state.ready):
            return None
        return self._state.message or f"the engine is {self._state.state}"

    def check(self, waiting: int, sequences: int = 1) -> None:
        """Let a request of so many sequences in, or raise `ApiError`: 400 for one that is larger than the queue, 503
        while core takes none or after the drain, 429 when full.

        `waiting`: sequences admitted without a first token, those that core prefills right now included.
        """
        most = max(self._max_queued, MAX_CHOICES)
        if sequences > most:
            message = f"prompts times n make {sequences} sequences; ask for at most {most} (--max-queued-requests)"
            raise bad_request("n", message)
        lag = 0.0 if self._drain_started is None else self._clock() - self._drain_started
        if lag >= ENDPOINT_LAG_SECONDS:
            raise unavailable("the server is shutting down; send the request again, to another replica", "draining")
        if not self._believed(lambda state: state.admitting):
            code: Code = "draining" if self._state.state == EngineState.DRAINING else "not_ready"
            raise unavailable(f"not ready: {self._state.message or self._state.state}; try again", code)
        queued = max(0, waiting - self._state.prefilling)
        if queued >= self._max_queued or (queued and queued + sequences > most):
            raise queue_full(
                f"{queued} requests are waiting, and {sequences} more are beyond the limit of {self._max_queued}"
                " (--max-queued-requests); try again"
            )

    def check_texts(self, waiting: int) -> None:
        """Let in a text that is only tokenised, beside so many that wait for that. Raises `ApiError` (429)."""
        if waiting >= self._max_queued:
            raise queue_full(f"{waiting} texts are waiting, the limit (--max-queued-requests); try again")

    def _believed(self, question: Callable[[CoreState], bool]) -> bool:
        self._notice_silence()
        if question(self._state):
            return True
        away = self._lost_at is not None and self._clock() - self._lost_at < OUTAGE_GRACE_SECONDS
        return away and question(self._before)

    def _notice_silence(self) -> None:
        """A core that fell silent counts as away since the moment it should have spoken."""
        deadline = self._heard_at + SILENCE_SECONDS
        if self._clock() > deadline and (self._state.ready or self._state.admitting):
            self._lose(deadline, f"the scheduler has been silent for more than {SILENCE_SECONDS:g} s")

    def _lose(self, at: float, message: str) -> None:
        if self._state.ready or self._state.admitting:
            self._lost_at, self._before = at, self._state
        self._state = CoreState(ready=False, state=EngineState.DEGRADED, message=message)
