"""Brings plans to workers and results to the scheduler: two phases side by side, or both in one worker by turns.

A phase may have several workers, one for each rung. Its next step goes to the one that `Workers.route` names, and only
when no step of the phase is in flight: so a phase never has steps in flight on two workers, its steps complete in the
order in which they were planned, and one step clock for each phase is enough for the quarantine of blocks.
"""

from __future__ import annotations

from semipd_engine.contract import Phase
from semipd_engine.core.fault_isolation import Ending
from semipd_engine.core.holder import UNIFIED, Worker
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.step_log import StepLog
from semipd_engine.core.worker_pool import Workers
from semipd_engine.ipc.messages import PlanAnswer, PlanStale, StepFailed, StepPlan
from semipd_engine.pacing.page import PacingPage


class Dispatcher:
    def __init__(self, workers: Workers, step_log: StepLog, unified: bool) -> None:
        self._workers = workers
        self._log = step_log
        self._unified = unified
        self._last_phase = Phase.DECODE
        self._running: dict[Phase, Worker] = {}
        """Who has the phase's plan in flight."""
        self._recalled = 0

    def dispatch(self, scheduler: Scheduler, page: PacingPage, now: float) -> None:
        """Give every idle phase its next plan. Neither phase waits for the other, but in unified mode."""
        if self._unified:
            self._dispatch_unified(scheduler, now)
        else:
            plans = []
            for phase in (Phase.DECODE, Phase.PREFILL):  # decode first: it takes its blocks before a prompt does
                if phase not in scheduler.in_flight and self._workers.route(phase, alone=False) is not None:
                    plans.append((phase, self._plan(scheduler, phase, now)))
            for phase, plan in plans:
                worker = self._workers.route(phase, alone=_alone(scheduler))
                assert worker is not None  # there was one, and nobody has been heard since
                self._send(phase, worker, plan, now)
        recall = self._recall(scheduler)
        if recall is not None:
            page.recall(recall)

    def book(self, scheduler: Scheduler, worker: Worker, result: PlanAnswer, now: float) -> None:
        phase = next(iter(scheduler.in_flight)) if self._unified else Phase(worker.role)
        if isinstance(result, StepFailed):
            scheduler.plan_failed(phase, result)
        elif isinstance(result, PlanStale):
            scheduler.plan_stale(phase)
        else:
            self._log.step(phase, scheduler.in_flight[phase], result)
            scheduler.book(phase, result, now)

    def lost(self, scheduler: Scheduler, worker: Worker, ending: Ending, now: float) -> None:
        """Only the worker that had the plan in flight takes it along; an idle worker of the phase owes nothing."""
        for phase in tuple(Phase) if self._unified else (Phase(worker.role),):
            plan = scheduler.in_flight.get(phase) if self._running.get(phase) is worker else None
            self._log.worker_lost(phase, worker.pid, plan.seq if plan is not None else None, ending, now)
            if plan is not None:
                scheduler.worker_lost(phase, ending)

    def _dispatch_unified(self, scheduler: Scheduler, now: float) -> None:
        """One chunk, one decode step, one chunk ... as chunked prefill in one process does."""
        worker = self._workers.route(UNIFIED, alone=True)
        if worker is None or scheduler.in_flight:
            return
        order = (Phase.PREFILL, Phase.DECODE) if self._last_phase is Phase.DECODE else (Phase.DECODE, Phase.PREFILL)
        for phase in order:
            plan = self._plan(scheduler, phase, now)
            if plan is not None:
                self._last_phase = phase
                self._send(phase, worker, plan, now)
                return

    def _plan(self, scheduler: Scheduler, phase: Phase, now: float) -> StepPlan | None:
        if phase is Phase.PREFILL:
            return scheduler.plan_prefill(now)
        one_by_one = self._unified and scheduler.has_prompts
        return scheduler.plan_decode(max_steps=1 if one_by_one else None)

    def _send(self, phase: Phase, worker: Worker, plan: StepPlan | None, now: float) -> None:
        if plan is not None:
            self._running[phase] = worker
            worker.send(plan)
            self._log.plan(phase, plan, worker.pid, now)

    def _recall(self, scheduler: Scheduler) -> int | None:
        """End decode's plan at its next step when the scheduler wants to, or when its next step belongs elsewhere: the
        other phase came or went, a new partition is in force, or the worker is retiring."""
        recall = scheduler.take_recall()
        plan = scheduler.in_flight.get(Phase.DECODE)
        if recall is None and plan is not None and plan.seq != self._recalled and not self._unified:
            worker = self._workers.route(Phase.DECODE, alone=_alone(scheduler))
            if worker is not None and worker is not self._running[Phase.DECODE]:
                recall = plan.seq
        self._recalled = self._recalled if recall is None else recall
        return recall


def _alone(scheduler: Scheduler) -> bool:
    """Is a phase that runs now the only one?"""
    return len(scheduler.in_flight) == 1
