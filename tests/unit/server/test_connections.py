"""Edges of HTTP: half-closed connections, what is no request, endless heads, methods and origins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tests.unit.server.api_process import Api, StartApi
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from e2e.lib.waiting import PATIENCE_S, wait_until, wait_until_async
from semipd_engine.process import bind
from semipd_engine.server.__main__ import Server, configuration, http_protocol
from semipd_engine.server.connections import answering
from semipd_engine.server.http_io import client_of

pytestmark = pytest.mark.unit


def half_closed(api: Api, path: str, body: Any = None) -> socket.socket:
    """A client that has sent its request and its end of the connection's end."""
    content = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    host = httpx.URL(api.url)
    sock = socket.create_connection((host.host, host.port or 80))
    sock.sendall(f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
    sock.shutdown(socket.SHUT_WR)
    return sock


def read_all(sock: socket.socket) -> bytes:
    sock.settimeout(PATIENCE_S)
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


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


async def echo_length(scope: Any, receive: Any, send: Any) -> None:
    """An application: how many bytes the body has."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": f"{length:7d}".encode()})


def made(protocol: Any, app: Any = echo_length) -> Any:
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    config.load()
    return protocol(config, ServerState(), {})


@contextlib.asynccontextmanager
async def connected(protocol: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server of that protocol, as the api process has it."""
    server = await asyncio.get_running_loop().create_server(lambda: made(protocol), "127.0.0.1")
    async with server, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("protocol", "begun", "more"),
    [
        (answering(H11Protocol), b"GET / HTTP/1.1\r\nx: ", b"a"),
        (http_protocol(), b"GET / HTTP/1.1\r\nx: ", b"a"),
        (http_protocol(), b"GET / HTTP/1.1\r\n", b"x: a\r\n"),
        (http_protocol(), b"GET /", b"a"),
        (http_protocol(), b"", b"\r\n"),
        (http_protocol(), CHUNKED + b"3\r\nabc\r\n0\r\nx: ", b"a"),
    ],
)
async def test_what_comes_before_or_after_a_body_has_an_end(protocol: Any, begun: bytes, more: bytes) -> None:
    async with connected(protocol) as (reader, writer):
        writer.write(begun)
        for _ in range(64):
            writer.write(more * (1 << 14))
            await writer.drain()
        assert refusal(await reader.read())["code"] == "invalid_http"


class Sink(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data: Any) -> None:
        self.written += data

    def has(self, end: bytes) -> bool:
        return self.written.endswith(end)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def test_a_body_is_read_beside_an_offer_however_the_network_cuts_its_head() -> None:
    """Before it and after it are other lines; one begins like it."""
    lines = [b"POST / HTTP/1.1", b"Upgrade: h2c", b"host: x", b"upgrader: x", b"UPGRADE: websocket", b"upgrade:"]
    lines += [b"connection: Upgrade, HTTP2-Settings", b"content-length: 3", b"", b"abc"]
    sent = b"\r\n".join(lines)
    whole = [[sent[:cut], sent[cut:]] for cut in range(len(sent))]
    for pieces in (*whole, [sent[at : at + 1] for at in range(len(sent))]):
        sink, protocol = Sink(), made(http_protocol())
        protocol.connection_made(sink)
        for piece in pieces:
            protocol.data_received(piece)
        await wait_until_async(partial(sink.has, b"      3"), every_s=0)
        assert sink.written.startswith(b"HTTP/1.1 200"), pieces
        assert (b"upgrader", b"x") in protocol.headers, pieces


def test_a_refusal_reaches_a_client_that_is_still_sending(api: Api) -> None:
    """Its connection ends with it, and the rest of its body is read by nobody."""
    host, length = httpx.URL(api.url), 4 << 20
    head = f"POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    with socket.create_connection((host.host, host.port or 80)) as client:
        client.sendall(head.encode())
        client.sendall(bytes(length))
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 404 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def refusal(answer: bytes) -> Any:
    """The error of the one answer, status 400, with which a connection ended."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"\r\nconnection: close" in head.lower(), answer[:300]
    return json.loads(body)["error"]


async def test_how_the_network_cuts_a_head_decides_nothing() -> None:
    async with connected(http_protocol()) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 100_000 + b"\r\n\r\n")
        assert "too large" in refusal(await reader.read())["message"]


@pytest.mark.parametrize("protocol", [answering(H11Protocol), http_protocol()])
@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx y: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        CHUNKED + b"zz\r\nabc",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    ],
)
async def test_what_is_no_http_is_told_so(protocol: Any, sent: bytes) -> None:
    async with connected(protocol) as (reader, writer):
        writer.write(sent)
        assert "Content-Length" in refusal(await reader.read())["message"]


@pytest.mark.parametrize("protocol", [answering(H11Protocol), http_protocol()])
async def test_what_is_refused_before_it_has_a_route_has_an_id_too(protocol: Any) -> None:
    """The client's own, where its head was read."""
    begun = b"POST / HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    for sent, wanted in ((b"hello\r\n\r\n", rb"[0-9a-f]{32}"), (begun, b"mine")):
        async with connected(protocol) as (reader, writer):
            writer.write(sent)
            answer = await reader.read()
            assert refusal(answer)["code"] == "invalid_http"
            assert re.findall(rb"\r\nx-request-id: ([^\r]*)\r\n", answer) != []
            assert all(re.fullmatch(wanted, found) for found in re.findall(rb"\r\nx-request-id: ([^\r]*)\r\n", answer))


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


@pytest.mark.parametrize("protocol", [answering(H11Protocol), http_protocol()])
@pytest.mark.parametrize("behind", [b"no request\r\n\r\n", CHUNKED + b"zz\r\nabc"])
async def test_what_follows_a_whole_request_does_not_take_its_answer_away(protocol: Any, behind: bytes) -> None:
    async with connected(protocol) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc" + behind)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200") and answer.partition(b"\r\n\r\n")[2].startswith(b"      3")


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


@pytest.mark.parametrize("protocol", [answering(H11Protocol), http_protocol()])
async def test_long_heads_and_bodies_pass(protocol: Any) -> None:
    async with connected(protocol) as (reader, writer):
        for _ in range(2):
            writer.write(CHUNKED.replace(b"host", b"cookie: " + b"a" * 40_000 + b"\r\nhost"))
            for _ in range(50):
                writer.write(b"1000\r\n" + b"a" * 0x1000 + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and int(await reader.readexactly(7)) == 50 * 0x1000


def test_head_and_other_methods(api: Api) -> None:
    for path in ("/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/letters"):
        head = api.client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
    refused = api.client.get("/v1/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    error = refused.json()["error"]
    assert error["message"] == "GET /v1/completions: Method Not Allowed; use POST" and error["code"] == "unknown_url"
    for path in ("/v1/embeddings", "/v1/files/x", "/nowhere", "/v1/completions"):
        assert api.client.head(path).status_code == api.client.get(path).status_code, path
    assert set(api.client.post("/health").headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert api.client.options("/v1/completions", headers={"origin": "https://page"}).status_code == 405


def test_pages_of_allowed_origins_may_ask(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    api = start_api("--allowed-origins", "https://page, https://other", "--api-key-file", str(keys))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = api.client.options("/v1/completions", headers={"origin": "https://page"} | asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://page"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    refused = api.client.get("/v1/models", headers={"origin": "https://page"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://page")
    assert "access-control-allow-origin" not in api.client.get("/health", headers={"origin": "https://evil"}).headers
    evil = api.client.options("/v1/completions", headers={"origin": "https://evil", "x-request-id": "mine"} | asks)
    error = evil.json()["error"]
    assert (evil.status_code, error["param"], error["code"]) == (400, "origin", "origin_not_allowed")
    assert "https://evil" in error["message"] and "--allowed-origins" in error["message"]
    assert evil.headers["x-request-id"] == "mine" and "access-control-allow-origin" not in evil.headers
    assert evil.headers["vary"] == preflight.headers["vary"]


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [
        (None, " 203.0.113.7"),
        ("10.0.0.0/8", " 127.0.0.1"),
        ("10.0.0.0/8, 127.0.0.0/8", " 203.0.113.7"),
    ],
)
async def test_a_client_has_the_address_that_a_trusted_proxy_tells(
    monkeypatch: pytest.MonkeyPatch, trusted: str | None, seen: str
) -> None:
    """A pod listens on a socket of both families, where IPv4 addresses have IPv6's form."""
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": client_of(scope).encode()})

    listener = bind("::", 0)
    server = Server(configuration(app))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        forged = {"x-forwarded-for": "198.51.100.1, 203.0.113.7"}
        assert (await client.get(url, headers=forged)).text == seen
        assert (await client.get(url)).text == " 127.0.0.1"
    server.should_exit = True
    await serving
