"""What core says about itself: the state for api and people, the snapshot for the agent. Reads, never changes anything
but its own memory of how long the engine has been out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from semipd_engine.contract import (
    GATE_SECONDS,
    BlockCounts,
    EngineOptions,
    EngineSnapshot,
    EngineState,
    Gate,
    ModelInfo,
    Observation,
    Phase,
    WorkerReport,
    WorkerState,
)
from semipd_engine.core.holder import Holder
from semipd_engine.core.observation import Limits, Observer
from semipd_engine.core.partitions import Partitions
from semipd_engine.core.request import RequestState
from semipd_engine.core.resident_link import ResidentLink
from semipd_engine.core.routing import Router
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.wishes import Wishes
from semipd_engine.ipc import requests
from semipd_engine.ipc.requests import CoreState
from semipd_engine.ipc.workers import ResidentHello
from semipd_engine.pacing.page import PacingPage

HIDDEN_OUTAGE_SECONDS = 2.0
"""A shorter outage does not flip /ready."""
STUCK_SECONDS = 5.0
"""A worker whose heartbeat is older does not count as ready."""


@dataclass
class EngineStatus:
    """What the engine core knows about itself as a whole."""

    partitions: Partitions
    page: PacingPage | None = None
    scheduler: Scheduler | None = None
    splits_applied: int = 0
    terminating: bool = False
    """SIGTERM came: not ready, but api may still send requests."""
    drained: bool = False
    """No request is admitted any more."""
    was_ready: bool = False
    gate: Gate = Gate()  # noqa: RUF009  it is frozen
    gate_at: float = -math.inf
    """What the agent last said of it, and when."""
    last_model: ResidentHello | None = None


@dataclass
class Report:
    options: EngineOptions
    status: EngineStatus
    router: Router
    resident: ResidentLink
    observer: Observer
    wishes: Wishes
    _out_since: float | None = None

    def state(self, now: float) -> tuple[EngineState, str]:
        """The state and, unless it is READY, why: for people."""
        status = self.status
        if self.resident.failure is not None:
            return EngineState.FAILED, self.resident.failure.message
        if status.terminating or status.drained:
            return EngineState.DRAINING, "shutting down" if status.terminating else "drained on request"
        if status.page is None:
            if status.was_ready:
                return EngineState.DEGRADED, "the weights are being loaded again"
            if self.resident.percent is None:
                return EngineState.STARTING, "waiting for the resident process"
            return EngineState.LOADING, f"loading the model: {self.resident.percent} %"
        if status.partitions.awaiting:
            return EngineState.STARTING, "the model is loaded; waiting for the first partition (--await-partition)"
        holders = {phase: self.router.holders(phase) for phase in self.router.pool.phases}
        missing = [phase for phase, own in holders.items() if not any(self._serves(h, now) for h in own)]
        if missing:
            problems = [holder.problem for phase in missing for holder in holders[phase] if holder.problem]
            text = "; ".join([f"no working {' and '.join(missing)} worker", *problems])
            return (EngineState.DEGRADED if status.was_ready else EngineState.STARTING), text
        status.was_ready = True
        return EngineState.READY, ""

    def core_state(self, now: float) -> CoreState:
        state, message = self.state(now)
        status, scheduler = self.status, self.status.scheduler
        counts = self._blocks()
        waiting = scheduler.table.waiting if scheduler is not None else []
        wait, gap = scheduler.table.silence(now) if scheduler is not None else (0.0, 0.0)
        split = status.partitions.in_force.plan.split
        return CoreState(
            ready=self._ready(state, now),
            state=state,
            message=message,
            admitting=scheduler is not None
            and status.was_ready
            and not status.drained
            and state is not EngineState.FAILED,
            waiting_tokens=sum(len(r.token_ids) for r in waiting),
            model_name=self._model_name,
            max_model_len=status.last_model.max_model_len if status.last_model is not None else 0,
            waiting=len(waiting),
            prefilling=self._count(RequestState.PREFILLING),
            decoding=self._count(RequestState.DECODING),
            longest_wait_seconds=wait,
            longest_gap_seconds=gap,
            blocks_total=counts.total,
            blocks_free=counts.free,
            blocks_used=counts.used,
            blocks_cached=counts.cached,
            blocks_quarantined=counts.quarantined,
            prefix_queries_tokens=scheduler.kv.queries_tokens if scheduler is not None else 0,
            prefix_hits_tokens=scheduler.kv.hits_tokens if scheduler is not None else 0,
            preemptions=scheduler.preemptions if scheduler is not None else 0,
            accounting_faults=scheduler.accounting_faults if scheduler is not None else 0,
            prefill_percent=split.prefill,
            decode_percent=split.decode,
            splits_applied=status.splits_applied,
            kernels=status.last_model.kernels if status.last_model is not None else "",
            max_stall_seconds=self.options.max_stall_ms / 1000,
            stalls_prefill=scheduler.stalls[Phase.PREFILL] if scheduler is not None else 0,
            stalls_decode=scheduler.stalls[Phase.DECODE] if scheduler is not None else 0,
            wishes_ignored_ttft=self.wishes.ignored["ttft"],
            wishes_ignored_tpot=self.wishes.ignored["tpot"]
            + (scheduler.wishes_overruled if scheduler is not None else 0),
            gate=self._gate(now),
        )

    def snapshot(self, since: int, now: float) -> EngineSnapshot:
        state, message = self.state(now)
        status = self.status
        waiting = status.scheduler.table.waiting if status.scheduler is not None else []
        failure, partitions = self.resident.failure, status.partitions
        return EngineSnapshot(
            core_id=self.observer.core_id,
            monotonic_time=now,
            state=state,
            reason=failure.reason if failure is not None else "",
            message=message,
            load_progress_percent=self.resident.percent,
            model=self._model(),
            split_epoch=partitions.in_force.split_epoch,
            split=partitions.in_force.plan.split,
            pending_epoch=partitions.pending.split_epoch if partitions.pending is not None else 0,
            refused=partitions.refused,
            workers=self._worker_reports(now),
            leaving=self.router.pool.leaving,
            waiting=len(waiting),
            prefilling=self._count(RequestState.PREFILLING),
            decoding=self._count(RequestState.DECODING),
            blocks=self._blocks(),
            accounting_faults=status.scheduler.accounting_faults if status.scheduler is not None else 0,
            observation=self._observation(since, now),
            restarts={phase.value: self.router.pool.deaths[phase] for phase in self.router.pool.phases}
            | {"resident": self.resident.losses},
        )

    def _observation(self, since: int, now: float) -> Observation | None:
        scheduler = self.status.scheduler
        if scheduler is None:
            return None
        pool, size = scheduler.kv.pool, scheduler.kv.block_size
        limits = scheduler.limits
        return self.observer.observation(
            now,
            since,
            scheduler.table.waiting,
            scheduler.table.in_state(RequestState.PREFILLING, RequestState.DECODING),
            Limits(limits.max_num_seqs, pool.num_blocks * size, limits.prefill_chunk_tokens),
            preemptions=scheduler.preemptions,
            kv_used_tokens=pool.counts().used * size,
        )

    def _gate(self, now: float) -> requests.Gate:
        said = self.status.gate
        if now - self.status.gate_at > GATE_SECONDS:
            return requests.Gate()
        return requests.Gate(said.ttft_seconds, said.token_seconds, said.square_seconds, said.most_in_work)

    def heartbeat_age(self, holder: Holder, now: float) -> float:
        """Seconds; a worker that has not beaten yet is as old as itself."""
        page = self.status.page
        beat = page.seats[holder.phase][holder.seat].heartbeat_ns / 1e9 if page is not None else 0.0
        return max(0.0, now - max(beat, holder.started_at))

    def _serves(self, holder: Holder, now: float) -> bool:
        return holder.ready and self.heartbeat_age(holder, now) < STUCK_SECONDS

    def _ready(self, state: EngineState, now: float) -> bool:
        if state is EngineState.READY:
            self._out_since = None
            return True
        if state is not EngineState.DEGRADED:
            return False
        if self._out_since is None:
            self._out_since = now
        return now - self._out_since < HIDDEN_OUTAGE_SECONDS

    def _count(self, state: RequestState) -> int:
        scheduler = self.status.scheduler
        return len(scheduler.table.in_state(state)) if scheduler is not None else 0

    def _blocks(self) -> BlockCounts:
        if self.status.scheduler is None:
            return BlockCounts()
        return self.status.scheduler.kv.pool.counts()

    @property
    def _model_name(self) -> str:
        return self.options.served_model_name or self.options.model.name

    def _model(self) -> ModelInfo | None:
        hello = self.status.last_model
        if hello is None:
            return None
        return ModelInfo(
            name=self._model_name,
            architecture=hello.architecture,
            dtype=hello.dtype,
            device=hello.device,
            weight_bytes=hello.weight_bytes,
            max_model_len=hello.max_model_len,
            kernels=hello.kernels,
            kernels_shortfall=hello.kernels_shortfall,
            kv_block_size=hello.block_size,
            kv_bytes=hello.kv_bytes,
            sm_count=hello.sm_count,
        )

    def _worker_reports(self, now: float) -> tuple[WorkerReport, ...]:
        """One for each phase and rung, the routed one first; in one process decode stands for both phases. Workers that
        are retiring are left out, as nothing depends on them, unless they must be ended."""
        page = self.status.page
        if page is None:
            return ()
        return tuple(
            self._worker_report(phase, holder, page, now)
            for phase in Phase
            for holder in self._holders(phase if phase in self.router.pool.phases else Phase.DECODE)
        )

    def _holders(self, phase: Phase) -> list[Holder]:
        return self.router.holders(phase) + self.router.pool.overdue(phase)

    def _worker_report(self, phase: Phase, holder: Holder, page: PacingPage, now: float) -> WorkerReport:
        dead = holder.state is WorkerState.DEAD
        route = self.router.next(holder.phase, alone=False)
        routed = route is not None and holder is route.holder
        rung = route.rung if route is not None and routed else holder.rung
        seat = page.seats[holder.phase][holder.seat]
        return WorkerReport(
            phase=phase,
            pid=holder.pid,
            generation=holder.generation,
            state=holder.state,
            applied_epoch=0 if dead else seat.applied_epoch,
            heartbeat_age_seconds=self.heartbeat_age(holder, now),
            busy=not dead and seat.pid != 0 and seat.idle_since_ns == 0,
            steps=0 if dead else seat.steps,
            cpu_seconds=0.0 if dead else seat.cpu_ns / 1e9,
            percent=rung.percent or 100,
            routed=routed,
            sm_count=holder.sm_count if rung.alone else holder.rungs.get(rung.index),
            lost_rungs={} if dead else holder.lost,
            start_seconds={} if dead else holder.start_seconds,
            ending=holder.kill_at is not None and holder.pidfd >= 0,
        )
