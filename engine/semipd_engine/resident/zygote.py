"""The resident's side of the process that forks workers for a GPU (`worker.zygote`): started aside, asked, given up.

The first workers are started by exec while it imports; whoever comes later, a cold rung or a worker after a crash, is
forked within milliseconds. Where it fails workers are started by exec, as without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Collection

from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed
from semipd_engine.process import adopt_orphans, bury_strangers
from semipd_engine.resident.cuda_environment import worker_environment
from semipd_engine.worker.start_messages import Forked, ForkWorker

MODULE = "semipd_engine.worker.zygote"
FORK_SECONDS = 5.0
MOST_FAILURES = 3

log = logging.getLogger("resident")


class Zygote:
    def __init__(self) -> None:
        self._pid = 0
        self._orders: BlockingChannel[Forked] | None = None
        self._ready = self._adopts = False
        self._failures = 0

    def fork(self, environment: dict[str, str], channel: socket.socket, start: socket.socket) -> int | None:
        """A worker's pid, a child of this process; None: it has to be started by exec. Its channel and the socket of
        its `WorkerStart` are given away. Raises OSError where it may have been forked or not."""
        if self._orders is None:
            if self._failures < MOST_FAILURES:
                try:
                    self._start()
                except OSError as error:
                    self._failed(error)
            return None
        try:
            self._ready = self._ready or self._orders.recv(timeout=0) is not None
            if not self._ready:
                return None
            self._orders.send(ForkWorker(environment), (channel.fileno(), start.fileno()))
        except ChannelClosed:
            self._lose()
            return None
        try:
            answer = self._orders.recv(timeout=FORK_SECONDS)
        except ChannelClosed:
            answer = None
        if answer is None or not answer.pid:
            self._lose()
            raise OSError("the zygote forked no worker")  # what it may yet fork finds its sockets closed
        return answer.pid

    def _start(self) -> None:
        adopt_orphans()
        self._adopts = True
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as unstarted, theirs:
            unstarted.callback(ours.close)
            theirs.set_inheritable(True)
            command = [sys.executable, "-m", MODULE, str(os.getpid()), str(theirs.fileno())]
            # A library that starts threads when it is imported would make forking unsafe.
            environment = worker_environment(os.environ, {}) | {"OPENBLAS_NUM_THREADS": "1"}
            self._pid = os.posix_spawn(sys.executable, command, environment)
            unstarted.pop_all()
        self._orders, self._ready = BlockingChannel(ours, Forked), False

    def _lose(self) -> None:
        self._failed("it does not answer")
        self._end()

    def _failed(self, why: object) -> None:
        self._failures += 1
        told = "the zygote failed (%d of %d): %s; workers are started by exec"
        log.warning(told, self._failures, MOST_FAILURES, why)

    def _end(self) -> None:
        assert self._orders is not None
        self._orders.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._orders, self._pid = None, 0

    def bury_strangers(self, workers: Collection[int]) -> None:
        """Whoever was adopted and has ended: a worker that a lost zygote forked all the same, or a worker's child."""
        if self._adopts:
            bury_strangers({self._pid, *workers})

    def close(self) -> None:
        if self._orders is not None:
            self._end()
