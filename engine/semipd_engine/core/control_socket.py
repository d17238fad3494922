"""Core's end of ``<run_dir>/control.sock``: one JSON request a line, one JSON answer a line (`contract`)."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from semipd_engine.contract import (
    CONTROL_REQUEST,
    CONTROL_SOCKET,
    Ack,
    ControlError,
    Drain,
    EngineSnapshot,
    GetSnapshot,
    SetPartition,
)
from semipd_engine.core.event_loop import EventLoop
from semipd_engine.process import listen

Request = SetPartition | GetSnapshot | Drain
Reply = EngineSnapshot | Ack | ControlError
LONGEST_LINE = 1 << 20
"""Bytes. A longer request is a broken client."""


class ControlSocket:
    def __init__(self, loop: EventLoop, run_dir: Path, answer: Callable[[Request], Reply]) -> None:
        """`answer` may raise ValueError: the client gets its text."""
        self._loop = loop
        self._answer = answer
        self._listener = listen(run_dir / CONTROL_SOCKET)
        loop.watch(self._listener, selectors.EVENT_READ, lambda _: self._accept())

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        _Client(self._loop, sock, self._reply)

    def _reply(self, line: bytes) -> bytes:
        try:
            reply: Reply = self._answer(CONTROL_REQUEST.validate_json(line))
        except ValidationError as error:
            reply = ControlError(message=f"not a control request: {error}")
        except ValueError as error:
            reply = ControlError(message=str(error))
        return reply.model_dump_json().encode() + b"\n"


class _Client:
    """Lines in, lines out, without ever waiting for a client that does not read."""

    def __init__(self, loop: EventLoop, sock: socket.socket, reply: Callable[[bytes], bytes]) -> None:
        sock.setblocking(False)
        self._loop, self._sock, self._reply = loop, sock, reply
        self._received = bytearray()
        self._unsent = bytearray()
        loop.watch(sock, selectors.EVENT_READ, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = self._sock.recv(1 << 16)
                if not data or len(self._received) > LONGEST_LINE:
                    return self._close()
                self._received += data
                while (end := self._received.find(b"\n")) >= 0:
                    line = bytes(self._received[:end])
                    del self._received[: end + 1]
                    self._unsent += self._reply(line)
            if self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            return self._close()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._loop.watch(self._sock, wanted, self._ready)
        return None

    def _close(self) -> None:
        self._loop.forget(self._sock)
        self._sock.close()
