"""A phase worker: takes plans from its channel, executes them, reports each step. Holds nothing that a plan lacks.

Weights, KV pool and pacing page are mapped already: inherited from the resident over a fork, or attached to after an
exec (`worker.__main__`). It knows core's messages, its pacer and a runner; no requests, no blocks and no other worker.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from setproctitle import setproctitle

from semipd_engine.contract import Device, Phase
from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed
from semipd_engine.ipc.steps import (
    Continuation,
    CoreToWorker,
    PlanStale,
    Shutdown,
    StepFailed,
    StepPlan,
    StepResult,
    WorkerReady,
    WorkerUnfit,
)
from semipd_engine.pacing.cpus import OwnProcess
from semipd_engine.pacing.pacer import PhasePacer
from semipd_engine.pacing.page import PacingPage
from semipd_engine.process import die_first, give_way
from semipd_engine.worker.servable import Runner, ServableModel, StaleSlot, UnfitError

HEARTBEAT_SECONDS = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerIdentity:
    phase: Phase
    generation: int
    pid: int
    seat: int = 0
    """Which of the phase's records in the pacing page it keeps."""
    percent: int | None = None
    """Its rung; None where its limit may change."""

    @property
    def title(self) -> str:
        return f"semipd: {self.phase}" if self.percent is None else f"semipd: {self.phase} {self.percent}%"

    @property
    def peer(self) -> Phase:
        return Phase.DECODE if self.phase is Phase.PREFILL else Phase.PREFILL


def run_worker(
    identity: WorkerIdentity, attach: Callable[[], ServableModel], page: PacingPage, sock: socket.socket
) -> None:
    """Serve plans until core says Shutdown or is gone. A worker that finds itself unfit says so and returns."""
    setproctitle(identity.title)
    die_first()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    channel: BlockingChannel[CoreToWorker] = BlockingChannel(sock, CoreToWorker)
    try:
        model = attach()
        peer = identity.peer if model.device == Device.CPU else None  # only CPUs are shared by pacing
        if peer is Phase.DECODE:
            give_way()
        pacer = PhasePacer(page, identity.phase, peer, OwnProcess(page, model.set_threads), identity.seat)
        runner = model.runner(pacer, identity.phase)
        pacer.start(identity.pid, identity.generation)
        times = model.start
        channel.send(
            WorkerReady(
                *(identity.phase, identity.pid, identity.generation, model.sm_count(), times.began_at, times.seconds),
                rungs=dict(model.rungs),
                lost=dict(model.lost),
            )
        )
        unprepared = True
        while True:
            message = channel.recv(timeout=0 if unprepared else HEARTBEAT_SECONDS)
            if isinstance(message, Shutdown):
                return
            if message is None:
                pacer.refresh()
                unprepared = pacer.peer_rests() and runner.prepare()
                continue
            if isinstance(message, Continuation):
                channel.send(PlanStale(message.seq))  # the plan before it is over
                continue
            pacer.wake()
            _execute(message, model, runner, page.recalled, pacer, channel)
            pacer.rest()
            unprepared = True
    except ChannelClosed:
        log.info("core is gone")
    except UnfitError as error:
        log.error("%s: %s", error.reason, error)
        with contextlib.suppress(ChannelClosed):
            channel.send(WorkerUnfit(error.reason, str(error)))


def _execute(
    plan: StepPlan,
    model: ServableModel,
    runner: Runner,
    recalled: Callable[[int], bool],
    pacer: PhasePacer,
    channel: BlockingChannel[CoreToWorker],
) -> None:
    """Run one plan; an exception of the model ends the plan, not the worker, unless the device is lost with it."""

    def report(result: StepResult) -> None:
        pacer.count_step()
        channel.send(msgspec.structs.replace(result, finished_at=time.monotonic()))

    def following(seq: int) -> Continuation | None:
        """Behind a plan comes what continues it, or Shutdown."""
        message = channel.peek()
        if not isinstance(message, Continuation) or message.seq != seq:
            return None
        channel.recv()
        return message

    try:
        for result in runner.execute(plan, recalled, following):
            report(result)
    except ChannelClosed:
        raise
    except StaleSlot as stale:
        channel.send(PlanStale(plan.seq if stale.seq is None else stale.seq))
    except Exception as error:
        log.exception("plan %d failed", plan.seq)
        if model.is_fatal(error):
            raise  # core plans again from the last reported step, on another worker
        message = f"{type(error).__name__}: {error}"
        channel.send(StepFailed(plan.seq, message, request=getattr(error, "request", None)))
