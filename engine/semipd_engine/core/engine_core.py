"""The engine core: one loop that owns all requests, plans both phases and books what the workers report.

It holds the sockets of api, agent (control), resident and workers, and the state machine between them. Scheduling is
the scheduler's, worker life cycles are `worker_pool`'s, what a limit means is the pacer's. Torch-free.
"""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

from semipd_engine.contract import (
    Ack,
    Device,
    Drain,
    EngineOptions,
    EngineSnapshot,
    GetSnapshot,
    PartitionPlan,
    Phase,
    SetPartition,
)
from semipd_engine.core.api_socket import ApiSocket
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.control_socket import ControlSocket
from semipd_engine.core.dispatch import Dispatcher
from semipd_engine.core.event_loop import EventLoop
from semipd_engine.core.fault_isolation import Ending
from semipd_engine.core.grammar import Grammars
from semipd_engine.core.holder import Holder
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.observation import Observer
from semipd_engine.core.partitions import Partitions, initial_partition
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.report import EngineStatus, Report
from semipd_engine.core.request import Request
from semipd_engine.core.resident_link import ResidentLink
from semipd_engine.core.routing import Router
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.step_log import StepLog
from semipd_engine.core.wishes import Wishes
from semipd_engine.core.worker_pool import WorkerPool
from semipd_engine.ipc.requests import DRAINING, NOT_READY, CoreState, Rejected, RequestOutput
from semipd_engine.ipc.steps import PlanAnswer
from semipd_engine.ipc.workers import ResidentHello
from semipd_engine.pacing.page import PacingPage, plan_text

TICK_SECONDS = 0.1
"""Longest time that the loop waits: retries, watchdog and gauges need no more."""
GAUGE_SECONDS = 1.0
WATCHDOG_SECONDS = 60.0
"""A worker without a heartbeat for so long is killed and replaced."""
AWAY_SECONDS = 5.0
"""Core looks less often only if it was stopped itself (a frozen cgroup, a paused machine), and its workers with it.
What they missed meanwhile does not count."""
PLANS_AHEAD = "SEMIPD_PLANS_AHEAD"
"""Of the environment: ``1`` sends decode's plans ahead on a CPU, too, where a plan's way is short beside its steps."""

log = logging.getLogger(__name__)


class EngineCore:
    def __init__(self, options: EngineOptions, run_dir: Path, initial_plan: PartitionPlan) -> None:
        """`initial_plan` is in force, as epoch 0, until the agent sets one; with `await_partition` it is only shown."""
        self._options = options
        self._loop = EventLoop()
        self._observer = Observer()
        self._arrived: tuple[ResidentHello, PacingPage] | None = None
        self._published: CoreState | None = None
        self._published_at = 0.0
        self._watched_at = self._watching_since = -math.inf
        phases = (Phase.DECODE,) if options.unified else tuple(Phase)
        initial = initial_partition(initial_plan)
        self._partitions = Partitions(phases, initial, options.prepare_seconds, options.await_partition)
        self._status = EngineStatus(self._partitions)
        self._workers = WorkerPool(
            self._loop, phases, self._partitions, self._on_result, self._on_worker_lost, options.prepare_seconds
        )
        router = Router(self._partitions, self._workers)
        self._dispatcher = Dispatcher(router, StepLog(options.step_log), self._observer)
        self._resident = ResidentLink(self._loop, run_dir, self._on_hello, self._workers, self._on_resident_lost)
        self._wishes = Wishes()
        self._report = Report(options, self._status, router, self._resident, self._observer, self._wishes)
        self._api = ApiSocket(
            self._loop,
            run_dir,
            self._on_add,
            self._on_abort,
            self._on_rejected,
            self._wishes,
            aggregated=lambda: self._aggregated,
        )
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._loop.watch(self._wake, 1, lambda _: self._on_masks())
        self._grammars = Grammars(options.model, lambda: os.eventfd_write(self._wake, 1))
        self._control = ControlSocket(self._loop, run_dir, self._on_control)

    def run(self) -> None:
        """Until `terminate` was called and the last api is gone; the workers are gone on return."""
        while not (self._status.terminating and not self._api.connected):
            self._loop.run_once(0.0 if self._api.behind else TICK_SECONDS)
            self._tick(time.monotonic())
        self._workers.shut_down(timeout=5.0)

    def terminate(self) -> None:
        """SIGTERM: not ready any more. The api drains its requests and disconnects; then `run` returns."""
        self._status.terminating = True

    # ---- each turn of the loop -----------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        self._resident.tick(now)
        self._api.tick()
        if self._arrived is not None and self._workers.gone:
            arrived, self._arrived = self._arrived, None
            self._adopt(*arrived)
        if self._status.page is not None:
            self._switch(now)
        self._workers.tick(now)
        self._watch_heartbeats(now)
        scheduler, page = self._status.scheduler, self._status.page
        if scheduler is not None:
            if fault := scheduler.heal():
                log.error("the block accounts were wrong (%s): new ones, running requests are computed again", fault)
            if page is not None:
                self._dispatcher.dispatch(scheduler, page, self._partitions.in_force.plan.split, now)
            outputs = scheduler.take_outputs()
            for request, output in outputs:
                if output.finish_reason is not None or output.error is not None:
                    self._observer.finished(request, now)
            self._api.deliver(outputs)
        if now - self._published_at >= GAUGE_SECONDS or self._state_changed(now):
            self._published, self._published_at = self._report.core_state(now), now
            self._api.publish(self._published)

    def _state_changed(self, now: float) -> bool:
        """Cheap: looked at in every turn, while the gauges wait for their second."""
        published = self._published
        return published is None or (published.state, published.message) != self._report.state(now)

    def _watch_heartbeats(self, now: float) -> None:
        if now - self._watched_at > AWAY_SECONDS:
            self._watching_since = now
        self._watched_at, watching = now, now - self._watching_since
        for holder in self._workers.everyone():
            if holder.ready and min(self._report.heartbeat_age(holder, now), watching) > WATCHDOG_SECONDS:
                log.error("%s worker %d has not moved for %g s: killed", holder.title, holder.pid, WATCHDOG_SECONDS)
                self._workers.kill(holder)

    # ---- api -----------------------------------------------------------------------------------------------------

    def _on_masks(self) -> None:
        os.eventfd_read(self._wake)
        if self._status.scheduler is not None:
            self._status.scheduler.masks_ready()

    def _on_add(self, request: Request, grammar: str) -> None:
        if self._status.scheduler is None or self._status.drained:
            drained = self._status.drained
            error = f"the engine {'is draining' if drained else 'has not loaded its model yet'}; try again"
            code = DRAINING if drained else NOT_READY
            self._api.deliver([(request, RequestOutput(key=request.key, error=error, error_code=code))])
            return
        self._observer.arrived(request)
        if grammar:
            request.constraint = self._grammars.constraint(grammar)
        self._status.scheduler.add(request)

    def _on_rejected(self, rejected: Rejected) -> None:
        self._observer.rejected(rejected.received_at, rejected.prompt_tokens, time.monotonic())

    def _on_abort(self, request_id: int, ended: bool) -> int:
        scheduler = self._status.scheduler
        return scheduler.abort(request_id, "stop" if ended else "abort") if scheduler is not None else 0

    # ---- control -------------------------------------------------------------------------------------------------

    def _on_control(self, request: SetPartition | GetSnapshot | Drain) -> EngineSnapshot | Ack:
        """Raises ValueError for what cannot be done; nothing has changed then."""
        now = time.monotonic()
        if isinstance(request, GetSnapshot):
            if request.promised is not None:
                self._wishes.promise(request.promised.ttft_seconds, request.promised.tpot_seconds)
            if request.gate is not None:
                self._status.gate, self._status.gate_at = request.gate, now
            return self._report.snapshot(request.since, now)
        if isinstance(request, Drain):
            self._status.drained = True
        else:
            plan_text(request.plan)  # a plan that does not fit is refused before it changes anything
            self._partitions.propose(request, now)
            self._switch(now)
        return Ack(split_epoch=self._partitions.in_force.split_epoch)

    def _switch(self, now: float) -> None:
        """Put a pending partition in force if its workers are ready, or refuse it if they take too long."""
        pending = self._partitions.pending
        changed = self._partitions.tick(now, self._workers.is_ready)
        if changed is not None:
            if self._status.page is not None:
                self._status.page.write_plan(changed.split_epoch, changed.plan)
            if self._status.scheduler is not None:
                self._aggregate(self._status.scheduler)
            self._status.splits_applied += 1
            log.info("split %s, epoch %d", changed.plan.split, changed.split_epoch)
        elif pending is not None and self._partitions.pending is None and self._partitions.refused is not None:
            log.error("epoch %d is refused: %s", pending.split_epoch, self._partitions.refused.message)

    @property
    def _aggregated(self) -> bool:
        return self._options.unified or self._partitions.in_force.plan.aggregated

    def _aggregate(self, scheduler: Scheduler) -> None:
        scheduler.aggregate(self._aggregated, self._partitions.in_force.plan.split.mixed_tokens)

    # ---- resident and workers ------------------------------------------------------------------------------------

    def _on_hello(self, hello: ResidentHello, page: PacingPage) -> None:
        """A resident is there; its pool is used once the last worker of the one before it is dead and booked."""
        self._arrived = (hello, page)

    def _adopt(self, hello: ResidentHello, page: PacingPage) -> None:
        """The weights and a KV pool that nobody uses are there (again)."""
        status = self._status
        status.page, status.last_model = page, hello
        page.recall(0)  # step numbers start anew
        in_force = self._partitions.in_force
        page.write_plan(in_force.split_epoch, in_force.plan)
        self._partitions.restart(time.monotonic())
        kv = KVCacheManager(BlockPool(hello.num_blocks), hello.block_size, self._options.prefix_caching)
        if status.scheduler is None:
            limits = SchedulerLimits(
                max_model_len=hello.max_model_len,
                max_num_seqs=self._options.max_num_seqs,
                prefill_chunk_tokens=self._options.chunk_tokens(hello.device),
                plans_ahead=hello.device == Device.CUDA or os.environ.get(PLANS_AHEAD) == "1",
                max_stall_seconds=self._options.max_stall_ms / 1000,
            )
            status.scheduler = Scheduler(limits, kv)
            self._aggregate(status.scheduler)
        else:
            status.scheduler.replace_kv(kv)
        self._grammars.warm_up(hello.vocab_size)
        log.info("resident %d: %s, %d KV blocks", hello.pid, hello.architecture, hello.num_blocks)
        self._workers.attach(self._resident.ask, hello.sm_count)

    def _on_resident_lost(self) -> None:
        """Its workers die with it and the pool is gone; accepted requests wait for the next one."""
        log.error("the resident is gone; accepted requests wait for the next one")
        self._workers.detach()
        if self._arrived is not None:
            os.close(self._arrived[1].fd)
            self._arrived = None
        if self._status.page is not None:
            os.close(self._status.page.fd)
            self._status.page = None

    def _on_result(self, holder: Holder, answer: PlanAnswer) -> None:
        if self._status.scheduler is not None:
            self._dispatcher.book(self._status.scheduler, holder, answer, time.monotonic())

    def _on_worker_lost(self, holder: Holder, ending: Ending) -> None:
        if self._status.scheduler is not None:
            self._dispatcher.lost(self._status.scheduler, holder, ending, time.monotonic())
        if self._status.page is not None:
            self._status.page.seats[holder.phase][holder.seat].clear()
