"""The load client against a small HTTP server of its own: open loop, one connection each, honest about failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bench.traffic import Request, replay
from bench.traffic.client import LINGER_SECONDS
from bench.traffic.plan import ask
from e2e.lib.waiting import PATIENCE_S, wait_until_async

pytestmark = pytest.mark.unit

Handler = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[tuple[str, list[int]]]:
    """Serves POST with `handler` and closes; yields (url, client ports seen by POST)."""
    ports: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            content = json.dumps({"data": [{"id": "stand-in"}]}).encode()
            head_out = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(content)
            writer.write(head_out + content)
        else:
            ports.append(writer.get_extra_info("peername")[1])
            length = int(head.lower().split("content-length:")[1].split()[0])
            await handler(json.loads(await reader.readexactly(length)), writer)
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1")
    async with running:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}", ports


def begin(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")


async def event(writer: asyncio.StreamWriter, **content: Any) -> None:
    writer.write(b"data: " + json.dumps(content).encode() + b"\n\n")
    await writer.drain()


def choice(ids: list[int], text: str, finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "text": text, "token_ids": ids, "finish_reason": finish}


async def test_tokens_ids_text_usage_and_times() -> None:
    asked: list[dict[str, Any]] = []
    seen: list[str] = []

    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        asked.append(content)
        begin(writer)
        await event(writer, choices=[choice([11], "a")])
        await wait_until_async(lambda: seen)
        await asyncio.sleep(0.1)
        await event(writer, choices=[choice([12, 13], "bc", "length")])
        await event(writer, choices=[], usage={"prompt_tokens": 5})
        writer.write(b"data: [DONE]\n\n")

    async with server(handler) as (url, _):
        (record,) = await replay([Request(0.0, 3, (1, 2))], url, on_token=lambda index, at, text: seen.append(text))
    assert record.ok and record.token_ids == (11, 12, 13) and record.text == "abc" and record.prompt_tokens == 5
    assert record.gaps[0] >= 0.09 and record.gaps[1] == 0, "tokens of one event share its time"
    assert seen == ["a", "bc"]
    assert asked[0]["prompt"] == [1, 2] and asked[0]["model"] == "stand-in"
    assert asked[0]["return_token_ids"] and asked[0]["ignore_eos"] and asked[0]["stream"]


async def test_open_loop_sends_on_time_though_nothing_answers() -> None:
    """A closed-loop client would send the second request only after the first had ended."""
    release = asyncio.Event()

    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if content["prompt"] == "last":
            release.set()
        await release.wait()
        begin(writer)
        await event(writer, choices=[choice([1], "x", "stop")])

    plan = [Request(0.05 * number, 1, "first") for number in range(8)] + [Request(0.5, 1, "last")]
    async with server(handler) as (url, ports):
        found = await asyncio.wait_for(replay(plan, url), PATIENCE_S)
    assert all(record.ok for record in found)
    assert all(record.sent >= record.planned for record in found)
    assert all(record.token_times[0] >= 0.5 for record in found)
    assert len(set(ports)) == len(plan), "one connection for each request"


async def test_rejects_errors_and_cut_streams_are_told_apart() -> None:
    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        match content["prompt"]:
            case "full":
                writer.write(b"HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\ncontent-length: 4\r\n\r\nfull")
            case "error":
                begin(writer)
                await event(writer, choices=[choice([1], "x")])
                await event(writer, error={"message": "the core died"})
            case "cut":
                begin(writer)
                await event(writer, choices=[choice([1], "x")])
            case "garbage":
                begin(writer)
                writer.write(b"data: {not json\n\n")

    async with server(handler) as (url, _):
        full, error, cut, garbage = await replay([Request(0, 1, p) for p in ("full", "error", "cut", "garbage")], url)
    assert full.rejected and not full.ok and "full" in (full.error or "")
    assert not error.rejected and "the core died" in (error.error or "") and error.token_ids == (1,)
    assert not cut.ok and cut.error is None and cut.finish_reason is None
    assert not garbage.ok and garbage.error is not None


async def test_a_dead_server_is_an_error_of_each_request() -> None:
    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with server(handler) as (url, _):
        (record,) = await replay([ask("anyone there?")], url)
    assert not record.ok and record.error and record.status == 0


async def test_stop_ends_the_sending_at_once_and_lets_what_runs_finish() -> None:
    stop = threading.Event()

    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        begin(writer)
        stop.set()
        await asyncio.sleep(0.5)
        await event(writer, choices=[choice([1], "x", "stop")])

    async with server(handler) as (url, _):
        found = await asyncio.wait_for(
            replay([Request(0, 1, "now"), Request(60, 1, "later")], url, stop=stop), PATIENCE_S
        )
    assert [(record.index, record.ok) for record in found] == [(0, True)]


async def test_times_count_from_the_start_given() -> None:
    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        begin(writer)
        await event(writer, choices=[choice([1], "x", "stop")])

    async with server(handler) as (url, _):
        (record,) = await replay([Request(100.3, 1, "x")], url, start=time.monotonic() - 100)
    assert record.planned == 100.3 <= record.sent


async def test_a_stream_that_the_plan_hangs_up_keeps_what_it_brought() -> None:
    gone = asyncio.Event()

    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        begin(writer)
        await event(writer, choices=[choice([1], "x")])
        try:
            while True:
                await event(writer, choices=[])
                await asyncio.sleep(0.01)
        except ConnectionError:
            gone.set()

    async with server(handler) as (url, _):
        (record,) = await replay([Request(0.1, 99, "x", hang_up=1.5)], url)
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
    assert record.ok and record.finish_reason == "hung_up" and record.token_ids == (1,)
    assert record.ended is not None and record.ended >= 1.6
    assert record.longest_gap == pytest.approx(record.ended - record.token_times[0])


@pytest.mark.parametrize("hang_up", [None, 30.0, 0.5])
async def test_a_stream_outlasts_another_unless_it_is_hung_up_before(hang_up: float | None) -> None:
    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        begin(writer)
        if content["max_tokens"] == 1:
            await asyncio.sleep(1.0)
            await event(writer, choices=[choice([1], "x", "stop")])
            return
        with contextlib.suppress(ConnectionError):
            while True:
                await event(writer, choices=[choice([1], "x")])
                await asyncio.sleep(0.01)

    plan = [Request(0.0, 99_999, "long", hang_up=hang_up, outlasts=1), Request(0.0, 1, "short")]
    async with server(handler) as (url, _):
        stream, other = await replay(plan, url)
    assert stream.ok and stream.finish_reason == "hung_up" and other.finish_reason == "stop"
    assert stream.ended is not None and other.ended is not None
    if hang_up == 0.5:
        assert stream.ended < other.ended + LINGER_SECONDS
    else:
        assert stream.ended >= other.ended + LINGER_SECONDS


async def test_a_chained_request_is_planned_when_the_one_before_it_ends() -> None:
    async def handler(content: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        begin(writer)
        await asyncio.sleep(0.2)
        await event(writer, choices=[choice([1], "x", "stop")])

    plan = [Request(0, 1, "a"), Request(0, 1, "b", after=0), Request(0, 1, "c", after=1, not_after=0.3)]
    async with server(handler) as (url, _):
        first, second = await replay(plan, url)
    assert second.planned >= first.token_times[-1] >= 0.2
    assert second.ttft is not None and 0.2 <= second.ttft < second.token_times[0]
