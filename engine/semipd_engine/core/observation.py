"""What core tells a controller: arrivals, tokens, steps and busy time as they happen. Events in, `Observation` out.

Pure. It is told of every event with its time and integrates; it samples nothing. Knows no plans beyond their size, no
workers and no policy.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from semipd_engine.contract import (
    Arrival,
    FinishedRequest,
    Observation,
    Phase,
    QueuedRequest,
    RunningRequest,
    Split,
    StepTimes,
)
from semipd_engine.core.request import Request, RequestState

FINISHED_KEPT = 4096
ARRIVAL_SECONDS = 60.0
KINDS_KEPT = 256
"""Kinds of steps of which sums are kept; the one that was seen longest ago goes first."""


Kind = tuple[Phase, int, int, int, int, int]
"""Of a step: phase, split, and as powers of two its batch, context and tokens of prompts."""


@dataclass(frozen=True)
class StepSize:
    """What one step works on."""

    rows: int
    tokens: int
    """Computed: of all chunks, or one for each row."""
    context: int
    """Decode: positions read by all rows. Prefill: sum over chunks of tokens x mean position."""
    prompt_tokens: int = 0
    prompt_context: int = 0
    """Of both, what chunks of prompts have."""


@dataclass(frozen=True)
class Limits:
    max_num_seqs: int = 0
    kv_tokens: int = 0
    prefill_chunk_tokens: int = 0


@dataclass
class _Sums:
    steps: int = 0
    tokens: int = 0
    context: int = 0
    prompt_tokens: int = 0
    prompt_context: int = 0
    alone: float = 0.0
    shared: float = 0.0
    told: StepTimes | None = None
    """As it was told last; None: a step came since."""


@dataclass
class _Flight:
    """The step that a phase has in flight."""

    size: StepSize
    split: Split
    since: float
    shared: float = 0.0
    """Seconds since `since` in which the other phase had a step in flight."""


class Observer:
    def __init__(self, core_id: str = "") -> None:
        self.core_id = core_id or secrets.token_hex(8)
        self._arrivals: deque[Arrival] = deque()
        self._finished: deque[FinishedRequest] = deque(maxlen=FINISHED_KEPT)
        self.next_cursor = 0
        self._flights: dict[Phase, _Flight] = {}
        self._busy = dict.fromkeys(Phase, 0.0)
        self._shared = 0.0
        self._at: float | None = None
        self._sums: dict[Kind, _Sums] = {}
        self._held: dict[str, float] = {"slots": 0.0, "kv": 0.0}
        self._holding = ""

    # ---- requests --------------------------------------------------------------------------------------------------

    def arrived(self, request: Request) -> None:
        self._arrivals.append(
            Arrival(id=request.id, at=request.received_at, prompt_tokens=len(request.prompt_token_ids))
        )
        self._forget_arrivals(request.received_at)  # an engine without an agent is asked by nobody

    def finished(self, request: Request, now: float) -> None:
        first, last, count = request.first_token_at, request.last_token_at, request.num_output_tokens
        tpot = (last - first) / (count - 1) if first is not None and last is not None and count > 1 else None
        self._keep(
            FinishedRequest(
                cursor=self.next_cursor,
                id=request.id,
                received_at=request.received_at,
                finished_at=now,
                prompt_tokens=len(request.prompt_token_ids),
                cached_tokens=request.cached_tokens,
                output_tokens=count,
                ttft_seconds=first - request.received_at if first is not None else None,
                tpot_seconds=tpot,
                finish_reason=request.finish_reason or "error",
            )
        )

    def rejected(self, received_at: float, prompt_tokens: int, now: float) -> None:
        """Answered with 429 before it came here: a request that was refused suffers, too."""
        self._keep(
            FinishedRequest(
                cursor=self.next_cursor,
                received_at=received_at,
                finished_at=now,
                prompt_tokens=prompt_tokens,
                cached_tokens=0,
                output_tokens=0,
                ttft_seconds=None,
                tpot_seconds=None,
                finish_reason="rejected",
            )
        )

    def _keep(self, request: FinishedRequest) -> None:
        self._finished.append(request)
        self.next_cursor += 1

    def finished_since(self, cursor: int) -> tuple[FinishedRequest, ...]:
        """Those with a cursor at or above `cursor`, oldest first."""
        return tuple(f for f in self._finished if f.cursor >= cursor)

    def arrivals(self, now: float) -> tuple[Arrival, ...]:
        self._forget_arrivals(now)
        return tuple(self._arrivals)

    def _forget_arrivals(self, now: float) -> None:
        while self._arrivals and self._arrivals[0].at < now - ARRIVAL_SECONDS:
            self._arrivals.popleft()

    # ---- steps -----------------------------------------------------------------------------------------------------

    def step_began(self, phase: Phase, size: StepSize, split: Split, now: float) -> None:
        """A plan was sent, or the next step of a plan with several begins."""
        self._integrate(now)
        self._flights[phase] = _Flight(size, split, now)

    def step_ended(self, phase: Phase, now: float, *, seconds: float | None = None) -> None:
        """It is complete. `seconds`: its own time where that is known better than by the two calls."""
        self._integrate(now)
        flight = self._flights.pop(phase, None)
        if flight is None:
            return
        lasted = now - flight.since
        part = min(1.0, flight.shared / lasted) if lasted > 0 else 0.0
        seconds = lasted if seconds is None else min(seconds, lasted)
        size, split = flight.size, flight.split
        batch, context, prompts = size.tokens, size.context, 0
        if phase is Phase.DECODE:  # prompts may take part: such a step is on neither phase's line
            batch, context, prompts = batch - size.prompt_tokens, context - size.prompt_context, size.prompt_tokens
        kind = (phase, split.prefill, split.decode, _rounded(batch), _rounded(context), _rounded(prompts))
        sums = self._sums.pop(kind, None) or _Sums()
        self._sums[kind] = sums  # the newest kind is last
        sums.told = None
        sums.steps += 1
        sums.tokens += size.tokens
        sums.context += size.context
        if prompts:
            sums.prompt_tokens += prompts
            sums.prompt_context += size.prompt_context
        sums.shared += seconds * part
        sums.alone += seconds * (1 - part)
        while len(self._sums) > KINDS_KEPT:
            del self._sums[next(iter(self._sums))]

    def step_lost(self, phase: Phase, now: float) -> None:
        """Its worker is gone: the time was spent, but says nothing about steps."""
        self._integrate(now)
        self._flights.pop(phase, None)

    def held_back(self, by: str, now: float) -> None:
        """Why the queue's head is not admitted although prefill is free: ``slots``, ``kv``, or nothing (empty)."""
        self._integrate(now)
        self._holding = by

    def _integrate(self, now: float) -> None:
        before = now if self._at is None else self._at
        self._at, passed = max(now, before), now - before
        if passed <= 0:
            return
        for phase in self._flights:
            self._busy[phase] += passed
        if len(self._flights) == len(Phase):
            self._shared += passed
            for flight in self._flights.values():
                flight.shared += passed
        if self._holding:
            self._held[self._holding] += passed

    # ---- out -------------------------------------------------------------------------------------------------------

    def observation(
        self,
        now: float,
        since: int,
        waiting: Iterable[Request],
        running: Iterable[Request],
        limits: Limits,
        *,
        preemptions: int = 0,
        kv_used_tokens: int = 0,
    ) -> Observation:
        """`since`: cursor of finished requests. `waiting` in the order of service."""
        self._integrate(now)
        return Observation.model_construct(  # core's own figures need no validation, and it has no time for it
            core_id=self.core_id,
            at=now,
            arrivals=self.arrivals(now),
            finished=self.finished_since(since),
            next_cursor=self.next_cursor,
            queue=tuple(_queued(request) for request in waiting),
            running=tuple(_running(request) for request in running),
            steps=tuple(sums.told or _told(kind, sums) for kind, sums in self._sums.items()),
            busy_seconds=dict(self._busy),
            shared_seconds=self._shared,
            held_back_by_slots_seconds=self._held["slots"],
            held_back_by_kv_seconds=self._held["kv"],
            preemptions=preemptions,
            max_num_seqs=limits.max_num_seqs,
            kv_tokens=limits.kv_tokens,
            kv_used_tokens=kv_used_tokens,
            prefill_chunk_tokens=limits.prefill_chunk_tokens,
        )


def _told(kind: Kind, sums: _Sums) -> StepTimes:
    """Kept until the next step of its kind: most kinds have none from one second to the next."""
    phase, x, y, batch, context, prompts = kind
    sums.told = StepTimes.model_construct(
        phase=phase,
        split=Split.model_construct(prefill=x, decode=y),
        batch=batch,
        context=context,
        steps=sums.steps,
        tokens=sums.tokens,
        context_tokens=sums.context,
        alone_seconds=sums.alone,
        shared_seconds=sums.shared,
        prompts=prompts,
        prompt_tokens=sums.prompt_tokens,
        prompt_context_tokens=sums.prompt_context,
    )
    return sums.told


def _rounded(value: int) -> int:
    """Down to a power of two; 0 stays 0."""
    return 1 << (value.bit_length() - 1) if value > 0 else 0


def _queued(request: Request) -> QueuedRequest:
    return QueuedRequest.model_construct(
        id=request.id,
        received_at=request.received_at,
        uncached_tokens=len(request.token_ids),
        output_tokens=request.num_output_tokens,
        first_token_at=request.first_token_at,
    )


def _running(request: Request) -> RunningRequest:
    left = request.num_uncomputed_tokens if request.state is RequestState.PREFILLING else 0
    return RunningRequest.model_construct(
        id=request.id,
        received_at=request.received_at,
        prompt_tokens=len(request.prompt_token_ids),
        uncomputed_tokens=left,
        output_tokens=request.num_output_tokens,
        max_tokens=request.sampling.max_tokens,
        first_token_at=request.first_token_at,
        last_token_at=request.last_token_at,
    )
