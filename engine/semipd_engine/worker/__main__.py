"""``python -m semipd_engine.worker PARENT CHANNEL START``: a phase worker started by exec, for a GPU.

PARENT is the resident's pid; CHANNEL and START are inherited sockets: core's plans, and the resident's `WorkerStart`.
The environment carries the worker's limit, so nothing may touch the device before this process begins.
"""

from __future__ import annotations

import logging
import os
import socket
import sys

from semipd_engine.ipc.frames import BlockingChannel
from semipd_engine.pacing.page import PacingPage
from semipd_engine.process import die_with_parent
from semipd_engine.worker.loop import WorkerIdentity, run_worker
from semipd_engine.worker.servable import ServableModel
from semipd_engine.worker.start_messages import WorkerStart

START_SECONDS = 30.0


def main(parent: int, channel_fd: int, start_fd: int) -> int:
    die_with_parent(parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    channel, source = socket.socket(fileno=channel_fd), socket.socket(fileno=start_fd)
    for inherited in (channel, source):
        inherited.set_inheritable(False)
    reader: BlockingChannel[WorkerStart] = BlockingChannel(source, WorkerStart)
    start = reader.recv(timeout=START_SECONDS)
    if start is None:
        raise TimeoutError(f"the resident sent nothing within {START_SECONDS:g} s")
    page, fds = PacingPage(reader.fds.popleft()), list(reader.fds)
    reader.close()

    def attach() -> ServableModel:
        from semipd_engine.worker.attach import TorchModel

        return TorchModel.attach(start.model, fds)

    identity = WorkerIdentity(start.phase, start.generation, os.getpid(), start.seat, start.percent)
    run_worker(identity, attach, page, channel)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))
