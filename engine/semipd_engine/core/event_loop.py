"""One thread, many sockets: selectors with callbacks, and buffered non-blocking connections of framed messages.

A peer that does not read costs memory, never the loop's time: core must not wait for a stopped worker or api.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from semipd_engine.ipc.frames import Decoder, FrameError, encode

Message = TypeVar("Message")
READ_BYTES = 1 << 15
"""At once, of one peer: a thousand small messages, some 10 ms of work, after which others have their turn."""


class EventLoop:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, descriptor: Any, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` when the descriptor is ready. Watching it again replaces the events."""
        try:
            self._selector.modify(descriptor, events, callback)
        except KeyError:
            self._selector.register(descriptor, events, callback)

    def forget(self, descriptor: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def run_once(self, timeout: float) -> None:
        for key, events in self._selector.select(timeout):
            if key.fd in self._selector.get_map():  # an earlier callback may have closed it
                key.data(events)


class Connection(Generic[Message]):
    """A non-blocking stream of messages. `on_message` may close the connection; `on_close` is called once."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        message_type: Any,
        on_message: Callable[[Message], None],
        on_close: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._decoder: Decoder[Message] = Decoder(message_type)
        self._on_message = on_message
        self._on_close = on_close
        self._unsent = bytearray()
        self.closed = False
        self.fds: collections.deque[int] = collections.deque()
        """Received file descriptors that no message has claimed yet."""
        loop.watch(sock, selectors.EVENT_READ, self._ready)

    def send(self, message: msgspec.Struct) -> None:
        if not self.closed:
            self._unsent += encode(message)
            self._flush()

    def drain(self) -> None:
        """Handle everything that has arrived, up to the end of the stream."""
        while not self.closed and self._read():
            pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.forget(self._sock)
            self._sock.close()
            self._on_close()

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and not self.closed:
            self._read()

    def _read(self) -> bool:
        """False when there is nothing to read now."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, READ_BYTES, 8)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        self.fds += fds
        try:
            messages = self._decoder.feed(data)
        except FrameError:
            messages, data = [], b""
        for message in messages:
            if not self.closed:
                self._on_message(message)
        if not data:
            self.close()
        return bool(data)

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._loop.watch(self._sock, events, self._ready)
