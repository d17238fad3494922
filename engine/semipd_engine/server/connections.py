"""What uvicorn's protocols lack: answers that arrive, whatever the client does with its half of the connection, and a
bound on what is read before a body.

A client that has sent its request may shut down its sending side. One that has gone looks the same, until something is
sent to it: then its side answers with a reset. So the first bytes of the answer, the same for all answers, are sent at
once, and the socket is looked at until the answer is complete. And a client may be refused before it has sent all: a
connection closed with bytes unread is reset, and the answer lost with it, so it is closed for writing first. Knows
uvicorn's protocol classes, no requests.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from semipd_engine.server.errors import ApiError, bad_request
from semipd_engine.server.headers import REQUEST_ID_HEADER, id_of_request

FIRST_BYTES = b"HTTP/1.1 "
LOOK_SECONDS = 0.1
TCP_CLOSED = 7
"""The first byte of TCP_INFO, once a reset came."""
MAX_HEAD_BYTES = 1 << 16
"""Of a request's head, as h11 has it; and of all that is no body."""
PIECE_BYTES = 4096
LINGER_SECONDS = 5.0
"""So long what a refused client still sends is read, for nobody."""
UPGRADE = re.compile(rb"\nupgrade:[^\n]*(?=\n)", re.IGNORECASE)
EMPTY_LINE = re.compile(rb"\n\r?\n")
TOO_LONG = "The head of the request is too large."


class Outlet:
    """The transport that uvicorn answers through. `unread` tells, when it is to be closed, whether more of what the
    client has sent may come."""

    def __init__(self, transport: Any, unread: Callable[[], bool]) -> None:
        self._transport = transport
        self._unread = unread
        self._begun = False
        self._lingers = False

    def begin(self) -> None:
        """Send `FIRST_BYTES` now; they are cut off the answer."""
        self._begun = True
        self._transport.write(FIRST_BYTES)

    def write(self, data: bytes) -> None:
        if self._begun:
            self._begun = False
            data = data.removeprefix(FIRST_BYTES)
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._unread():
            self._transport.close()
            return
        self._lingers = True
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def without_chunks(cycle: Any) -> None:
    """HTTP/1.0 has no chunks (RFC 9112, 6.1): an answer that does not say its length ends with its connection. h11 has
    it so; httptools' `cycle` is told a length that is always what comes next."""
    send, sized = cycle.send, True

    async def plain(message: Any) -> None:
        nonlocal sized
        if message["type"] == "http.response.start":
            sized = any(name.lower() == b"content-length" for name, _ in message["headers"])
            cycle.chunked_encoding = None if sized else False
        elif not sized:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = plain


def answering(protocol: type[Any]) -> type[Any]:
    """uvicorn's `protocol`, whose answers reach clients that close their half of the connection early or are refused
    before they have sent all. What is no request is refused as everything is refused here; an answer that is being made
    to a whole request before it comes first, and is the last one."""

    class Answering(protocol):  # type: ignore[misc]
        cycle: Any
        client: tuple[str, int] | None
        _refused = False
        _socket: socket.socket | None = None
        _serving: Any = None
        """httptools' cycle whose answer is being made, or was last; `cycle` may wait for it in `pipeline`."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(Outlet(transport, self._unread))
            if self.client is not None:  # on a socket of both families it has IPv4 addresses in IPv6's form
                self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])

        @property
        def deaf(self) -> bool:
            """What comes is read for nobody."""
            return self._refused or bool(self.transport.is_closing())

        @property
        def waits(self) -> bool:
            """The last request has its turn after the answers to those before it. h11 reads none so early."""
            return bool(getattr(self, "pipeline", None))

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._serving = cycle
            if cycle.scope["http_version"] == "1.0":
                without_chunks(cycle)
            super()._start_asgi_task(cycle, app)

        def data_received(self, data: bytes) -> None:
            if not self.deaf:
                super().data_received(data)

        def eof_received(self) -> bool:
            """True keeps the connection, for the answers that are being made."""
            self._forget_what_waits_unfinished()
            cycle = self.cycle
            if cycle is None or cycle.response_complete or cycle.more_body:
                return False
            cycle.keep_alive = False
            if not (self._serving or cycle).response_started:
                self.transport.begin()
            own = self.transport.get_extra_info("socket")
            if own is not None and own.family in (socket.AF_INET, socket.AF_INET6):
                self._socket = socket.fromfd(own.fileno(), own.family, own.type)
                self._look()
            return True

        def connection_lost(self, error: Exception | None) -> None:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            if self.waits and self._serving is not None:  # uvicorn tells the last request only, which nobody serves yet
                self._serving.disconnected = True
                self._serving.message_event.set()
            super().connection_lost(error)

        def send_400_response(self, message: str) -> None:
            remedy = "send less" if message == TOO_LONG else "send HTTP/1.1 with a Content-Length or whole chunks"
            self.refuse(bad_request(None, f"request: {message.rstrip('.')}; {remedy}", code="invalid_http"))

        def refuse(self, error: ApiError) -> None:
            """Answer what is no whole request with `error`, unless it has its answer, and end the connection."""
            if self._refused:
                return
            self._refused = True
            self._forget_what_waits_unfinished()
            cycle = self.cycle
            if cycle is not None and not cycle.more_body and not cycle.response_complete:
                cycle.keep_alive = False
                return
            asked: list[tuple[bytes, bytes]] = []
            if cycle is not None and cycle.more_body:
                asked, answered = cycle.scope["headers"], cycle.response_started
                cycle.disconnected = True  # it waits for a body that never ends
                cycle.message_event.set()
                if answered:
                    self.transport.close()
                    return
            head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
            head += [f"{name}: {value}" for name, value in error.headers().items()]
            head.append(f"{REQUEST_ID_HEADER.decode()}: {id_of_request(asked)}")
            head += [f"content-length: {len(error.body())}", "connection: close", "", ""]
            self.transport.write("\r\n".join(head).encode("ascii") + error.body())
            self.transport.close()

        def _forget_what_waits_unfinished(self) -> None:
            """The rest of it will not come, or not be heard: what came whole before it is the last."""
            if self.waits and self.cycle.more_body:
                self.pipeline.popleft()
                self.cycle = self.pipeline[0][0] if self.pipeline else self._serving

        def _unread(self) -> bool:
            unread: bool = self._refused or (self.cycle is not None and self.cycle.more_body)
            if unread:
                self.flow.resume_reading()
            return unread

        def _look(self) -> None:
            if self._socket is None:
                return
            if self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSED:
                self.transport.abort()
            else:
                asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    return Answering


def bounded(protocol: type[Any]) -> type[Any]:
    """An `answering` protocol over httptools, which takes heads and trailers of any length. It is fed in pieces, so
    that how the network cuts them decides nothing; a head may be longer by one. It also drops the body of a request
    that offers another protocol, as Java's client does (h2c): such an offer, which nobody takes up, is taken out."""

    class Bounded(protocol):  # type: ignore[misc]
        _outside = 0
        """Bytes since the last one of a body or a complete head."""
        _in_head = True
        """What comes next is of a head, or begins one."""
        _held = b""
        """Of a head, read but not yet handed on."""

        def data_received(self, data: bytes) -> None:
            if self._in_head and not self.deaf:
                data = self._without_offers(data)
            for at in range(0, len(data), PIECE_BYTES):
                if self.deaf:
                    return
                piece = data[at : at + PIECE_BYTES]
                self._outside += len(piece)
                super().data_received(piece)
                self._check_length()
            self._check_length()

        def on_headers_complete(self) -> None:
            self._outside, self._in_head = 0, False
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._outside = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._outside, self._in_head = 0, True
            self.cycle.more_body = False  # also if its answer did not wait for it
            super().on_message_complete()

        def _check_length(self) -> None:
            if self._outside + len(self._held) > MAX_HEAD_BYTES and not self.deaf:
                self.send_400_response(TOO_LONG)

        def _without_offers(self, data: bytes) -> bytes:
            """What may be handed on of a head: of all but its last line, which is held until it is whole."""
            data, self._held = self._held + data, b""
            if ends := EMPTY_LINE.search(data):
                return UPGRADE.sub(b"", data[: ends.end()]) + data[ends.end() :]
            data = UPGRADE.sub(b"", data)
            last = data.rfind(b"\n")
            if last >= 0:  # a first line is handed on as it comes: it may be none
                data, self._held = data[:last], data[last:]
            return data

    return Bounded
