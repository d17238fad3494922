"""What core remembers about its requests for the agent: arrivals of the last minute, the last finished ones. Pure."""

from __future__ import annotations

from collections import deque

from semipd_engine.contract import Arrival, FinishedRequest
from semipd_engine.core.request import Request

FINISHED_KEPT = 4096
ARRIVAL_SECONDS = 60.0


class Telemetry:
    def __init__(self) -> None:
        self._arrivals: deque[Arrival] = deque()
        self._finished: deque[FinishedRequest] = deque(maxlen=FINISHED_KEPT)
        self.next_cursor = 0

    def arrived(self, request: Request) -> None:
        self._arrivals.append(Arrival(at=request.received_at, prompt_tokens=len(request.prompt_token_ids)))

    def finished(self, request: Request, now: float) -> None:
        first, last, count = request.first_token_at, request.last_token_at, request.num_output_tokens
        tpot = (last - first) / (count - 1) if first is not None and last is not None and count > 1 else None
        self._finished.append(
            FinishedRequest(
                cursor=self.next_cursor,
                finished_at=now,
                prompt_tokens=len(request.prompt_token_ids),
                cached_tokens=request.cached_tokens,
                output_tokens=count,
                ttft_seconds=first - request.received_at if first is not None else None,
                tpot_seconds=tpot,
                finish_reason=request.finish_reason or "error",
            )
        )
        self.next_cursor += 1

    def finished_since(self, cursor: int) -> tuple[FinishedRequest, ...]:
        """Those with a cursor at or above `cursor`, oldest first."""
        return tuple(f for f in self._finished if f.cursor >= cursor)

    def arrivals(self, now: float) -> tuple[Arrival, ...]:
        while self._arrivals and self._arrivals[0].at < now - ARRIVAL_SECONDS:
            self._arrivals.popleft()
        return tuple(self._arrivals)
