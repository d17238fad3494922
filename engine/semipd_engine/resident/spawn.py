"""Starts a worker for core: by fork, where it inherits all of the resident's memory, or by exec, where it attaches.

A process that has used a GPU cannot be forked, and a worker's MPS settings must be in its environment from the start:
so on CUDA it is exec, or the fork of a process that has imported all and used nothing (`zygote`). On the CPU fork takes
milliseconds and shares what no descriptor could stand for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable

from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed
from semipd_engine.ipc.workers import SpawnWorker
from semipd_engine.pacing.page import PacingPage
from semipd_engine.process import die_with_parent
from semipd_engine.resident.cuda_environment import worker_environment
from semipd_engine.resident.loaded_model import Attachment, LoadedModel
from semipd_engine.resident.zygote import Zygote
from semipd_engine.worker.loop import WorkerIdentity, run_worker
from semipd_engine.worker.start_messages import WorkerStart

log = logging.getLogger("resident")


def start_worker(
    order: SpawnWorker, model: LoadedModel, page: PacingPage, close_inherited: Callable[[], None], zygote: Zygote
) -> tuple[int, socket.socket]:
    """The worker's pid, and core's end of its channel. `close_inherited` runs in a forked child."""
    ours, workers = socket.socketpair()
    with workers:
        attachment = model.attachment()
        if attachment is not None:
            return _attached(order, attachment, page, workers, zygote), ours

        def close_all() -> None:
            ours.close()
            close_inherited()

        return _fork(order, model, page, workers, close_all), ours


def _fork(
    order: SpawnWorker, model: LoadedModel, page: PacingPage, sock: socket.socket, close_inherited: Callable[[], None]
) -> int:
    tasks = os.listdir("/proc/self/task")  # noqa: PTH208
    if len(tasks) != 1:
        raise RuntimeError(f"the resident has {len(tasks)} threads: forking now could hang the worker")
    resident_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            die_with_parent(resident_pid)
            close_inherited()
            os.environ.update(order.environment)
            identity = WorkerIdentity(order.phase, order.generation, os.getpid(), order.seat, order.percent)
            run_worker(identity, lambda: model, page, sock)
            code = 0
        except BaseException:
            log.exception("worker %s failed", order.phase)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def _attached(order: SpawnWorker, attachment: Attachment, page: PacingPage, sock: socket.socket, zygote: Zygote) -> int:
    """A worker that reads a `WorkerStart` from the socket that it is given."""
    mine, child = socket.socketpair()
    with mine, child:
        environment = worker_environment(os.environ, order.environment)
        pid = zygote.fork(environment, sock, child) or _exec(environment, sock, child)
        child.close()
        start = WorkerStart(order.phase, order.generation, order.seat, order.percent, attachment.message)
        channel: BlockingChannel[WorkerStart] = BlockingChannel(mine, WorkerStart)
        with contextlib.suppress(ChannelClosed):  # it is dead already: its pidfd says so
            channel.send(start, (page.fd, *attachment.fds))
        return pid


def _exec(environment: dict[str, str], channel: socket.socket, start: socket.socket) -> int:
    """``python -m semipd_engine.worker``"""
    for inherited in (channel, start):
        inherited.set_inheritable(True)
    numbers = [str(number) for number in (os.getpid(), channel.fileno(), start.fileno())]
    command = [sys.executable, "-m", "semipd_engine.worker", *numbers]
    return os.posix_spawn(sys.executable, command, environment)
