"""Core's connection to the resident: connects until it answers, reads its progress, receives its descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from semipd_engine.core.event_loop import Connection, EventLoop
from semipd_engine.ipc.workers import (
    RESIDENT_SOCKET,
    ResidentFailed,
    ResidentHello,
    ResidentLoading,
    ResidentToCore,
    Spawned,
    SpawnFailed,
    SpawnWorker,
    WorkerEnded,
)
from semipd_engine.pacing.page import PacingPage

RETRY_SECONDS = 0.1


class WorkerEvents(Protocol):
    """Who is told of the workers' lives."""

    def spawned(self, message: Spawned, channel_fd: int, pidfd: int) -> None: ...

    def not_spawned(self, message: SpawnFailed) -> None: ...

    def ended(self, pid: int, status: int) -> None: ...


class ResidentLink:
    """`on_hello` gets the pacing page; core keeps the KV descriptor here, so the pool outlives a glance at /proc."""

    def __init__(
        self,
        loop: EventLoop,
        run_dir: Path,
        on_hello: Callable[[ResidentHello, PacingPage], None],
        workers: WorkerEvents,
        on_lost: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._path = run_dir / RESIDENT_SOCKET
        self._on_hello = on_hello
        self._workers = workers
        self._on_lost = on_lost
        self._connection: Connection[ResidentToCore] | None = None
        self._try_at = 0.0
        self._kv_fd = -1
        self.hello: ResidentHello | None = None
        self.failure: ResidentFailed | None = None
        self.percent: int | None = None
        self.losses = 0

    def tick(self, now: float) -> None:
        """Connect if there is no connection."""
        if self._connection is not None or now < self._try_at:
            return
        self._try_at = now + RETRY_SECONDS
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            return
        self._connection = Connection(self._loop, sock, ResidentToCore, self._on_message, self._on_close)

    def ask(self, message: SpawnWorker) -> None:
        if self._connection is not None:
            self._connection.send(message)

    def _on_message(self, message: ResidentToCore) -> None:
        assert self._connection is not None
        fds = self._connection.fds
        match message:
            case ResidentLoading(percent):
                self.percent, self.failure = percent, None
            case ResidentFailed():
                self.failure = message
            case ResidentHello():
                self.hello, self.failure, self.percent = message, None, 100
                page = PacingPage(fds.popleft())
                self._kv_fd = fds.popleft() if message.kv_descriptor else -1
                self._on_hello(message, page)
            case Spawned():
                self._workers.spawned(message, fds.popleft(), fds.popleft())
            case SpawnFailed():
                self._workers.not_spawned(message)
            case WorkerEnded(pid, status):
                self._workers.ended(pid, status)

    def _on_close(self) -> None:
        self._connection = None
        self.percent = None
        if self._kv_fd >= 0:
            os.close(self._kv_fd)
            self._kv_fd = -1
        if self.hello is not None:
            self.hello = None
            self.losses += 1
            self._on_lost()
