"""What uvicorn's protocols lack: answers on half-closed connections, a bound on what is read before a body, and a
refusal that arrives.

A client that has sent its request may shut down its sending side. One that has gone looks the same, until something is
sent to it: then its side answers with a reset. So the first bytes of the answer, the same for all answers, are sent at
once, and the socket is looked at until the answer is complete. Knows uvicorn's protocol classes, no requests.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

from semipd_engine.server.errors import bad_request

FIRST_BYTES = b"HTTP/1.1 "
LOOK_SECONDS = 0.1
TCP_CLOSED = 7
"""The first byte of TCP_INFO, once a reset came."""
MAX_HEAD_BYTES = 1 << 16
"""Of a request's head, as h11 has it; and of all that is no body."""
PIECE_BYTES = 4096
LINGER_SECONDS = 5.0
"""A connection closed with bytes unread is reset, and the answer lost with it: so long they are read, for nobody."""
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
TOO_LONG = "The head of the request is too large."


class EarlyStart:
    """A transport whose next answer has begun already: `FIRST_BYTES` are cut off it."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._begun = False

    def begin(self) -> None:
        self._begun = True
        self._transport.write(FIRST_BYTES)

    def write(self, data: bytes) -> None:
        if self._begun:
            self._begun = False
            data = data.removeprefix(FIRST_BYTES)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def answering(protocol: type[Any]) -> type[Any]:
    """uvicorn's `protocol`, refusing what is no request as everything is refused here, so that the client hears it. An
    answer that is being made to a whole request before it comes first, and is the last one."""

    class Answering(protocol):  # type: ignore[misc]
        _refused = False

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                super().data_received(data)

        def send_400_response(self, message: str) -> None:
            if self._refused:
                return
            self._refused = True
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete:
                if not cycle.more_body:
                    cycle.keep_alive = False
                    return
                cycle.disconnected = True  # it waits for a body that never ends
                cycle.message_event.set()
                if cycle.response_started:
                    self.transport.close()
                    return
            remedy = "send less" if message == TOO_LONG else "send HTTP/1.1 with a Content-Length or whole chunks"
            error = bad_request(None, f"request: {message.rstrip('.')}; {remedy}", code="invalid_http")
            head = [f"{name}: {value}" for name, value in error.headers().items()]
            head += [f"content-length: {len(error.body())}", "connection: close", "", ""]
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + "\r\n".join(head).encode("ascii") + error.body())
            self.transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.close)

    return Answering


def half_closable(protocol: type[Any]) -> type[Any]:
    """uvicorn's `protocol`, for clients that close their half of the connection early."""

    class HalfClosable(protocol):  # type: ignore[misc]
        _socket: socket.socket | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(EarlyStart(transport))

        def eof_received(self) -> bool:
            """True keeps the connection, for the answer that is being made."""
            cycle = self.cycle
            if cycle is None or cycle.response_complete or cycle.more_body:
                return False
            cycle.keep_alive = False
            if not cycle.response_started:
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
            super().connection_lost(error)

        def _look(self) -> None:
            if self._socket is None:
                return
            if self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSED:
                self.transport.abort()
            else:
                asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    return HalfClosable


def bounded(protocol: type[Any]) -> type[Any]:
    """uvicorn's `protocol` over httptools, which takes heads and trailers of any length. It is fed in pieces, so
    that how the network cuts them decides nothing; a head may be longer by one. It also drops the body of a request
    that offers another protocol, as Java's client does (h2c): such an offer, which nobody takes up, is taken out."""

    class Bounded(protocol):  # type: ignore[misc]
        _outside = 0
        """Bytes since the last one of a body or a complete head."""
        _between = True
        """What comes begins a request."""

        def data_received(self, data: bytes) -> None:
            if self._between and (end := data.find(b"\r\n\r\n")) >= 0:
                data = UPGRADE.sub(b"", data[:end]) + data[end:]
            for at in range(0, len(data), PIECE_BYTES):
                if self.transport.is_closing():
                    return
                piece = data[at : at + PIECE_BYTES]
                self._outside += len(piece)
                super().data_received(piece)
                if self._outside > MAX_HEAD_BYTES and not self.transport.is_closing():
                    self.send_400_response(TOO_LONG)

        def on_message_begin(self) -> None:
            self._between = False
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._outside = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._outside = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._outside, self._between = 0, True
            super().on_message_complete()

    return Bounded
