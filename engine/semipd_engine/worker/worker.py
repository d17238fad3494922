"""A phase worker: takes plans from its channel, executes them, reports each step. Holds nothing that a plan lacks.

Started by the resident with a fork, so the weights, the KV pool and the pacing page are already mapped. It knows core's
messages, its pacer and a runner; it knows no requests, no blocks and no other worker.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from setproctitle import setproctitle

from semipd_engine.contract import Phase
from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed
from semipd_engine.ipc.messages import (
    CoreToWorker,
    DecodePlan,
    PrefillPlan,
    Shutdown,
    StepFailed,
    StepResult,
    WorkerReady,
)
from semipd_engine.memory.loaded import LoadedModel, Runner
from semipd_engine.pacing.pacer import OwnProcess, PhasePacer
from semipd_engine.pacing.page import PacingPage

HEARTBEAT_SECONDS = 0.5
UNIFIED = "unified"
"""The role of a worker that executes both phases' plans; it keeps prefill's slot of the pacing page."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerIdentity:
    role: str
    """prefill, decode or unified."""
    generation: int
    pid: int

    @property
    def slot(self) -> Phase:
        return Phase.PREFILL if self.role == UNIFIED else Phase(self.role)

    @property
    def peer(self) -> Phase | None:
        if self.role == UNIFIED:
            return None
        return Phase.DECODE if self.slot is Phase.PREFILL else Phase.PREFILL


def run_worker(
    identity: WorkerIdentity, model: LoadedModel, kv_fd: int, num_blocks: int, page: PacingPage, sock: socket.socket
) -> None:
    """Serve plans until core says Shutdown or is gone."""
    setproctitle(f"semipd: {identity.role}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pacer = PhasePacer(page, identity.slot, identity.peer, OwnProcess(page, model.set_threads))
    runner = model.runner(kv_fd, num_blocks, pacer)
    pacer.start(identity.pid, identity.generation)
    channel: BlockingChannel[CoreToWorker] = BlockingChannel(sock, CoreToWorker)
    try:
        channel.send(WorkerReady(identity.role, identity.pid, identity.generation))
        while True:
            message = channel.recv(timeout=HEARTBEAT_SECONDS)
            if isinstance(message, Shutdown):
                return
            if message is None:
                pacer.refresh()
                continue
            pacer.wake()
            _execute(message, runner, page.recalled, pacer, channel)
            pacer.rest()
    except ChannelClosed:
        log.info("core is gone")


def _execute(
    plan: PrefillPlan | DecodePlan,
    runner: Runner,
    recalled: Callable[[int], bool],
    pacer: PhasePacer,
    channel: BlockingChannel[CoreToWorker],
) -> None:
    """Run one plan; an exception of the model ends the plan, not the worker."""

    def report(result: StepResult) -> None:
        pacer.count_step()
        channel.send(msgspec.structs.replace(result, finished_at=time.monotonic()))

    try:
        if isinstance(plan, PrefillPlan):
            report(runner.prefill(plan))
        else:
            for result in runner.decode(plan, recalled):
                report(result)
    except ChannelClosed:
        raise
    except Exception as error:
        log.exception("plan %d failed", plan.seq)
        message = f"{type(error).__name__}: {error}"
        channel.send(StepFailed(plan.seq, message, request=getattr(error, "request", None)))
