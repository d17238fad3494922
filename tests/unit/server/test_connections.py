"""Connections: half-closed ones, clients that leave or still send, and those of HTTP 1.0."""

from __future__ import annotations

import asyncio
import json
import socket
from functools import partial
from typing import Any

import httpx
import pytest
from tests.unit.server.api_process import Api
from tests.unit.server.raw_http import CHUNKED, Sink, half_closed, made, read_all
from uvicorn.protocols.http.h11_impl import H11Protocol

from e2e.lib.waiting import PATIENCE_S, wait_until, wait_until_async
from semipd_engine.server.__main__ import http_protocol
from semipd_engine.server.connections import answering

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("stream", [False, True])
def test_a_half_closed_connection_gets_its_answer(api: Api, stream: bool) -> None:
    api.core.seconds_per_token = 0.05
    body = {"prompt": "The", "max_tokens": 8, "stream": stream}
    answer = read_all(half_closed(api, "/v1/completions", body))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.count(b"HTTP/1.1") == 1
    assert b"data: [DONE]" in answer if stream else json.loads(answer.partition(b"\r\n\r\n")[2])["choices"]
    assert read_all(half_closed(api, "/health")).startswith(b"HTTP/1.1 200 OK")
    assert api.core.aborted == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_left_altogether_is_noticed(api: Api, stream: bool) -> None:
    """Its end of the connection looks like a half-closed one at first."""
    api.core.hold = True
    half_closed(api, "/v1/completions", {"prompt": "The", "stream": stream}).close()
    wait_until(lambda: api.core.added and api.core.aborted == [api.core.added[0].key])


def test_a_refusal_reaches_a_client_that_is_still_sending(api: Api) -> None:
    """Its connection ends with it, and the rest of its body is read by nobody."""
    host, length = httpx.URL(api.url), 4 << 20
    head = f"POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    with socket.create_connection((host.host, host.port or 80)) as client:
        client.sendall(head.encode())
        client.sendall(bytes(length))
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 404 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


async def in_pieces(scope: Any, receive: Any, send: Any) -> None:
    """An application that does not say how long its answer is."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece in (b"one ", b"", b"two ", b"three"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("protocol", [answering(H11Protocol), http_protocol()])
async def test_an_answer_in_pieces_has_no_chunks_for_http_1_0(protocol: Any) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: made(protocol, in_pieces), "127.0.0.1")
    async with server, asyncio.timeout(PATIENCE_S):
        for version, chunked in ((b"1.0", False), (b"1.1", True)):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET / HTTP/" + version + b"\r\nhost: a\r\nconnection: close\r\n\r\n")
            head, _, body = (await reader.read()).lower().partition(b"\r\n\r\n")
            assert (b"transfer-encoding: chunked" in head) is chunked and b"connection: close" in head
            assert (body == b"one two three") is not chunked and body.count(b"two ") == 1
            writer.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_http_1_0_gets_its_answer(api: Api, stream: bool) -> None:
    content = json.dumps({"prompt": "The", "max_tokens": 4, "stream": stream}).encode()
    host = httpx.URL(api.url)
    with socket.create_connection((host.host, host.port or 80)) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert b" 200 OK\r\n" in head and b"chunked" not in head and b"connection: close" in head
    assert body.endswith(b"data: [DONE]\n\n") and body.startswith(b"data: {") if stream else json.loads(body)["choices"]


class Halves:
    """An application that begins each answer at once, and ends it once it may; `left`: the paths whose client left."""

    def __init__(self) -> None:
        self.may, self.left = asyncio.Event(), list[str]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await self.may.wait()
        while scope["path"] == "/watched":
            if (await receive())["type"] == "http.disconnect":
                self.left.append(scope["path"])
                return
        await send({"type": "http.response.body", "body": b"cd"})


GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("protocol", "behind", "answers"),
    [
        (http_protocol(), GET, 2),
        (http_protocol(), GET + CHUNKED + b"3\r\nab", 2),
        (http_protocol(), CHUNKED + b"3\r\nab", 1),
        (answering(H11Protocol), CHUNKED + b"3\r\nab", 1),
    ],
)
async def test_a_half_closed_connection_gets_the_answers_to_all_whole_requests(
    protocol: Any, behind: bytes, answers: int
) -> None:
    """One after the other, and nothing between the halves of one of them."""
    sink, app = Sink(), Halves()
    connection = made(protocol, app)
    connection.connection_made(sink)
    connection.data_received(GET + behind)
    await wait_until_async(partial(sink.has, b"ab"), every_s=0)
    assert connection.eof_received()
    app.may.set()
    await wait_until_async(lambda: sink.closed, every_s=0)
    assert sink.written.count(b"HTTP/1.1 200 OK\r\n") == sink.written.count(b"HTTP") == answers
    assert sink.written.count(b"\r\n\r\nabcd") == answers


async def test_who_leaves_with_a_request_waiting_leaves_the_one_that_is_answered() -> None:
    sink, app = Sink(), Halves()
    connection = made(http_protocol(), app)
    connection.connection_made(sink)
    connection.data_received(GET.replace(b"/ ", b"/watched ", 1) + GET)
    await wait_until_async(partial(sink.has, b"ab"), every_s=0)
    app.may.set()
    connection.connection_lost(None)
    await wait_until_async(lambda: app.left == ["/watched"], every_s=0)
