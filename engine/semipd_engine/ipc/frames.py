"""Framing of messages on the engine's Unix stream sockets: a 4-byte big-endian length, then msgpack.

Every channel of the engine uses it (api and core, core and resident, core and workers): stream sockets have no limit on
a message's size, datagrams have. Knows nothing of what the messages mean.

File descriptors (SCM_RIGHTS) travel beside the bytes of the message that announces them and in the same order, so a
reader takes them from its queue when it decodes that message.
"""

from __future__ import annotations

import array
import collections
import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

HEADER = struct.Struct(">I")
MAX_FRAME = 1 << 28
"""Bytes. A longer frame means that the peer speaks another protocol."""

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """The peer sent bytes that are not a frame of the expected messages."""


class ChannelClosed(Exception):
    """The peer is gone."""


def encode(message: msgspec.Struct) -> bytes:
    """One frame."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


class Decoder(Generic[Message]):
    """Incremental decoder: feed it what the socket gave, take the messages that are complete.

    `message_type` is one message type or a union of tagged ones, as in ``Decoder(ApiToCore)``.
    """

    def __init__(self, message_type: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(message_type)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Messages completed by `data`, in order. Raises FrameError on bytes that cannot be a frame."""
        self._buffer += data
        messages: list[Message] = []
        position = 0
        while len(self._buffer) - position >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, position)
            if length > MAX_FRAME:
                raise FrameError(f"frame of {length} bytes: the limit is {MAX_FRAME}")
            end = position + HEADER.size + length
            if len(self._buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(bytes(self._buffer[position + HEADER.size : end])))
            except msgspec.DecodeError as error:
                raise FrameError(str(error)) from error
            position = end
        del self._buffer[:position]
        return messages


class BlockingChannel(Generic[Message]):
    """Both directions of a blocking socket, for single-threaded loops (worker, resident, tests)."""

    def __init__(self, sock: socket.socket, message_type: Any) -> None:
        sock.setblocking(True)
        self.sock = sock
        self._decoder: Decoder[Message] = Decoder(message_type)
        self._ready: collections.deque[Message] = collections.deque()
        self.fds: collections.deque[int] = collections.deque()
        """Received file descriptors that no message has claimed yet."""

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: msgspec.Struct, fds: tuple[int, ...] = ()) -> None:
        """Raises ChannelClosed when the peer is gone."""
        data = encode(message)
        try:
            sent = send_with_fds(self.sock, data, fds) if fds else 0
            self.sock.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error

    def pending(self) -> bool:
        """True when a complete message waits in this object; the socket may hold more."""
        return bool(self._ready)

    def recv(self, timeout: float | None = None) -> Message | None:
        """Next message; None after `timeout` seconds without one. Raises ChannelClosed at the end of the stream."""
        while not self._ready:
            self.sock.settimeout(timeout)
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 8)
            except (TimeoutError, BlockingIOError):
                return None
            except ConnectionResetError as error:
                raise ChannelClosed from error
            finally:
                self.sock.settimeout(None)
            if not data:
                raise ChannelClosed
            self.fds += fds
            self._ready += self._decoder.feed(data)
        return self._ready.popleft()

    def peek(self) -> Message | None:
        """The message that `recv` gives next, if it has arrived."""
        message = self.recv(timeout=0)
        if message is not None:
            self._ready.appendleft(message)
        return message

    def close(self) -> None:
        self.sock.close()


def send_with_fds(sock: socket.socket, data: bytes, fds: tuple[int, ...]) -> int:
    """Send `fds` with the first bytes of `data`; returns how many bytes went out."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    return sock.sendmsg([data], [rights])
