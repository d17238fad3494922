"""Clients that send slowly, or nothing, or do not read: by a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from tests.unit.server.test_connections import Sink, made
from uvicorn.protocols.http.h11_impl import H11Protocol

from e2e.lib.waiting import wait_until_async
from semipd_engine.server.__main__ import http_protocol
from semipd_engine.server.connections import answering
from semipd_engine.server.held_bodies import SMALL_BYTES
from semipd_engine.server.slow_clients import (
    ANSWER_SECONDS,
    BODY_SECONDS,
    HEAD_SECONDS,
    MIB_SECONDS,
    SILENCE_SECONDS,
    patient,
)

pytestmark = [pytest.mark.unit, pytest.mark.parametrize("protocol", [patient(answering(H11Protocol)), http_protocol()])]

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n"
BODY = b"12345678901234567890"


class Timers:
    """The running loop, whose timers follow `now`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.set: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timers.Handle:
        self.set.append((when, callback))
        return Timers.Handle(self, (when, callback))

    def pass_by(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((each for each in self.set if each[0] <= end), key=lambda each: each[0]):
            self.set.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = end

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)

    class Handle:
        def __init__(self, timers: Timers, timer: tuple[float, Callable[[], None]]) -> None:
            self._timers, self._timer = timers, timer

        def cancel(self) -> None:
            if self._timer in self._timers.set:
                self._timers.set.remove(self._timer)


class Connection:
    def __init__(self, protocol: Any) -> None:
        self.sink, self.timers, self._made = Sink(), Timers(), made(protocol)
        self._made.loop = self.timers
        self._made.connection_made(self.sink)
        self.send = self._made.data_received

    def ended(self, about: str) -> bool:
        """With a refusal that names it, and with nothing before that."""
        head, _, body = self.sink.written.partition(b"\r\n\r\n")
        error = json.loads(body)["error"]
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"connection: close" in head
        assert error["code"] == "request_timeout" and f"its {about} did not come in time" in error["message"]
        return self._made.deaf and not self.timers.set

    async def answered(self) -> None:
        """All of the body was read, and the answer is out."""
        await wait_until_async(partial(self.sink.has, b"     20"), every_s=0)


async def test_who_says_nothing_is_let_go(protocol: Any) -> None:
    client = Connection(protocol)
    client.timers.pass_by(HEAD_SECONDS - 0.1)
    assert not client.sink.closed
    client.timers.pass_by(0.2)
    assert client.sink.closed and client.sink.written == b"" and not client.timers.set


async def test_a_head_by_the_byte_is_refused(protocol: Any) -> None:
    client = Connection(protocol)
    for at in range(10):
        assert client.sink.written == b""
        client.send(HEAD[at : at + 1])
        client.timers.pass_by(HEAD_SECONDS / 10)
    assert client.ended("head")


async def test_a_body_with_a_silence_is_refused(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(HEAD[:20])
    client.timers.pass_by(HEAD_SECONDS - 1)
    client.send(HEAD[20:] + BODY[:3])
    client.timers.pass_by(SILENCE_SECONDS - 1)
    client.send(BODY[3:4])
    client.timers.pass_by(SILENCE_SECONDS - 1)
    assert client.sink.written == b""
    client.timers.pass_by(1)
    assert client.ended("body")


async def test_a_body_by_the_byte_is_refused(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(HEAD)
    for at in range(12):
        assert client.sink.written == b""
        client.send(BODY[at : at + 1])
        client.timers.pass_by(BODY_SECONDS / 12)
    assert client.ended("body")


def large(size: int) -> bytes:
    return HEAD.replace(b"content-length: 20", b"content-length: %d" % size)


MIB = bytes(1 << 20)


async def taken(client: Connection) -> None:
    """What was sent is read, so that more may come."""
    await wait_until_async(lambda: not client._made.flow.read_paused and not client._made.cycle.body, every_s=0)


async def test_who_holds_the_room_of_others_and_drips_is_refused(protocol: Any) -> None:
    """However much it has sent: a few of them could keep all others out."""
    client = Connection(protocol)
    client.send(large(9 << 20))
    for _ in range(8):
        client.send(MIB)
    await taken(client)
    for _ in range(5):
        assert client.sink.written == b""
        client.send(b"x")
        client.timers.pass_by(MIB_SECONDS / 5)
    assert client.ended("body")


async def test_what_came_with_the_head_counts(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(large(1 << 20) + bytes(SMALL_BYTES + 1))
    await taken(client)
    client.timers.pass_by(MIB_SECONDS - 1)
    client.send(b"x")
    client.timers.pass_by(1)
    assert client.ended("body")


async def test_while_we_do_not_read_what_came_stays_counted(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(large(9 << 20))
    client.send(MIB)
    await taken(client)
    client._made.flow.pause_reading()
    client.timers.pass_by(MIB_SECONDS)
    client._made.flow.resume_reading()
    client.timers.pass_by(MIB_SECONDS - 1)
    assert client.sink.written == b""
    client.send(b"x")
    client.timers.pass_by(1)
    assert client.ended("body")


async def test_a_large_body_at_a_modest_pace_is_taken(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(large(8 << 20))
    for _ in range(8):
        client.timers.pass_by(MIB_SECONDS - 1)
        client.send(MIB)
        await taken(client)
    await wait_until_async(partial(client.sink.has, b"8388608"), every_s=0)


async def test_a_small_body_holds_no_room_and_has_its_time(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(large(SMALL_BYTES))
    client.send(bytes(SMALL_BYTES - 100))
    await taken(client)
    for _ in range(100):
        client.timers.pass_by((BODY_SECONDS - 1) / 100)
        client.send(b"x")
    await wait_until_async(partial(client.sink.has, b"%d" % SMALL_BYTES), every_s=0)


async def test_while_we_do_not_read_nobody_is_late(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(HEAD)
    client._made.flow.pause_reading()
    client.timers.pass_by(10 * BODY_SECONDS)
    client._made.flow.resume_reading()
    client.timers.pass_by(SILENCE_SECONDS / 2)
    assert client.sink.written == b""


async def test_a_request_in_time_is_answered_and_the_next_one_has_its_own_time(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(HEAD + BODY[:5])
    client.send(BODY[5:])
    assert not client.timers.set, "nothing is awaited while an answer is made"
    await client.answered()
    client.timers.pass_by(1000)
    assert not client.timers.set and not client.sink.closed
    client.sink.written = b""
    client.send(HEAD + BODY)
    await client.answered()
    client.sink.written = b""
    client.send(HEAD[:4])
    client.timers.pass_by(HEAD_SECONDS)
    assert client.ended("head")


async def test_a_part_of_a_request_that_came_before_its_turn_has_its_time_from_there(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(HEAD + BODY + HEAD + BODY[:5])
    assert not client.timers.set, "the first one is answered"
    await client.answered()
    client.timers.pass_by(SILENCE_SECONDS - 1)
    client.sink.written = b""
    client.timers.pass_by(1)
    assert client.ended("body")


async def test_an_early_answer_stays_the_only_one(protocol: Any) -> None:
    """The rest of a body that nobody waited for does not come."""
    client = Connection(protocol)
    client.send(HEAD + BODY[:5])
    client._made.cycle.response_started = client._made.cycle.response_complete = True
    client.timers.pass_by(SILENCE_SECONDS)
    assert client.sink.written == b"" and client._made.deaf


async def test_who_takes_nothing_of_its_answer_is_let_go(protocol: Any) -> None:
    client = Connection(protocol)
    client.send(HEAD + BODY)
    for _ in range(2):
        client._made.pause_writing()
        client.timers.pass_by(ANSWER_SECONDS - 1)
        client._made.resume_writing()
    client.timers.pass_by(ANSWER_SECONDS)
    assert not client.sink.closed and not client.timers.set
    client._made.pause_writing()
    client.timers.pass_by(ANSWER_SECONDS)
    assert client.sink.closed
    client._made.connection_lost(None)
    assert not client.timers.set
