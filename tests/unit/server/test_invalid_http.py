"""What is no HTTP, endless heads and what the network cuts: each is told so, and ends its connection alone."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
from tests.unit.server.raw_http import CHUNKED, Sink, connected, made, refusal
from uvicorn.protocols.http.h11_impl import H11Protocol

from e2e.lib.waiting import wait_until_async
from semipd_engine.server.__main__ import http_protocol
from semipd_engine.server.connections import answering

pytestmark = pytest.mark.unit


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


@pytest.mark.parametrize("protocol", [answering(H11Protocol), http_protocol()])
@pytest.mark.parametrize("behind", [b"no request\r\n\r\n", CHUNKED + b"zz\r\nabc"])
async def test_what_follows_a_whole_request_does_not_take_its_answer_away(protocol: Any, behind: bytes) -> None:
    async with connected(protocol) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc" + behind)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200") and answer.partition(b"\r\n\r\n")[2].startswith(b"      3")


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
