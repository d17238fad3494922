"""Requests byte by byte, and the api's HTTP protocols without the api: for tests of connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from tests.unit.server.api_process import Api
from uvicorn.server import ServerState

from e2e.lib.waiting import PATIENCE_S


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


def refusal(answer: bytes) -> Any:
    """The error of the one answer, status 400, with which a connection ended."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"\r\nconnection: close" in head.lower(), answer[:300]
    return json.loads(body)["error"]
