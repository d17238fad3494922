"""How long a client may take to send its request, and to take its answer. uvicorn waits for ever: for a first request,
a head's rest, a body, and for who reads nothing, whose answer holds its request's body meanwhile.

What has not come in time is answered with 408, where an answer has not begun, and the connection ends. While a request
is answered nothing is waited for, nor while reading is paused; between two requests uvicorn's own keep-alive counts.
Knows uvicorn's protocol classes as `connections.answering` makes them, no requests.
"""

from __future__ import annotations

import asyncio
import math
from enum import Enum
from typing import Any

from semipd_engine.server.errors import ApiError
from semipd_engine.server.held_bodies import SMALL_BYTES

HEAD_SECONDS = 30.0
"""From a connection's beginning, or a later request's first byte, to the end of the request's head."""
SILENCE_SECONDS = 60.0
"""Between two pieces of a body."""
BODY_SECONDS = 600.0
"""From a head's end to its body's, however its pieces come."""
MIB_SECONDS = 30.0
"""For each MiB of a body that `HeldBodies` counts, and for its rest: the more a few that drip have of the room for all,
the sooner it is free again."""
ANSWER_SECONDS = 600.0
"""From when so much of an answer waits to be taken that no more of it is written, until most of that is gone."""


class Awaited(Enum):
    HEAD = "head"
    BODY = "body"
    NOTHING = "nothing"


def patient(protocol: type[Any]) -> type[Any]:
    """An `answering` protocol that waits for a client's words as long as the constants of this module say."""

    class Patient(protocol):  # type: ignore[misc]
        _awaited = Awaited.NOTHING
        _since = _heard = 0.0
        """When it began to be awaited, and when a part of it came last; the loop's time."""
        _body = _reckoned = 0
        """Bytes of it that came, and how many of them had come ..."""
        _reckoned_at = 0.0
        """... when a MiB was complete last."""
        _spoke = False
        _timer: asyncio.TimerHandle | None = None
        _untaken: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await(Awaited.HEAD)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            self._heard, self._spoke = self.loop.time(), True
            self._body += len(data)
            if self._body - self._reckoned >= 1 << 20:
                self._reckoned, self._reckoned_at = self._body, self._heard
            awaited = self._what_is_missing()
            if awaited is not self._awaited or (awaited is Awaited.BODY and self.cycle is not before):
                self._await(awaited)

        def on_response_complete(self) -> None:
            """A part of the next request may have come before it had its turn."""
            super().on_response_complete()
            if self._awaited is Awaited.NOTHING and self._what_is_missing() is Awaited.BODY:
                self._await(Awaited.BODY)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._untaken = self.loop.call_at(self.loop.time() + ANSWER_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._taken()

        def connection_lost(self, error: Exception | None) -> None:
            self._await(Awaited.NOTHING)
            self._taken()
            super().connection_lost(error)

        def _taken(self) -> None:
            if self._untaken is not None:
                self._untaken.cancel()
                self._untaken = None

        def _what_is_missing(self) -> Awaited:
            cycle = self.cycle
            if self.deaf or self.waits:
                return Awaited.NOTHING
            if cycle is None:
                return Awaited.HEAD
            if cycle.more_body:
                return Awaited.BODY
            return Awaited.HEAD if cycle.response_complete else Awaited.NOTHING

        def _await(self, awaited: Awaited) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._awaited = awaited
            self._body = len(self.cycle.body) if awaited is Awaited.BODY else 0  # what came with its head
            self._reckoned = 0
            if awaited is not Awaited.NOTHING:
                self._begin()

        def _begin(self) -> None:
            self._since = self._heard = self._reckoned_at = self.loop.time()
            self._look_again(self._deadline())

        def _look_again(self, deadline: float) -> None:
            """Sooner than it is over now: a body that comes to count has less time."""
            self._timer = self.loop.call_at(min(deadline, self.loop.time() + MIB_SECONDS), self._judge)

        def _deadline(self) -> float:
            if self._awaited is Awaited.HEAD:
                return self._since + HEAD_SECONDS
            counted = self._reckoned_at + MIB_SECONDS if self._body > SMALL_BYTES else math.inf
            return min(self._since + BODY_SECONDS, self._heard + SILENCE_SECONDS, counted)

        def _judge(self) -> None:
            """The time was over when the timer was set; meanwhile more may have come, or the whole."""
            self._timer = None
            awaited = self._what_is_missing()
            if awaited is not self._awaited:
                self._await(awaited)
            elif self.flow.read_paused:  # it is we who do not read; what came stays counted
                self._begin()
            elif (deadline := self._deadline()) > self.loop.time():
                self._look_again(deadline)
            elif not self._spoke:
                self.transport.close()  # there is nothing to answer
            else:
                message = f"request: its {awaited.value} did not come in time; send it again, faster"
                self.refuse(ApiError(408, message, code="request_timeout"))

    return Patient
