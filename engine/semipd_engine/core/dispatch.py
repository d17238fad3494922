"""Brings plans to workers and results to the scheduler: two phases side by side, or both in one worker by turns."""

from __future__ import annotations

from semipd_engine.contract import Phase
from semipd_engine.core.blame import Ending
from semipd_engine.core.plans import Plan
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.step_log import StepLog
from semipd_engine.core.workers import UNIFIED, Worker, Workers
from semipd_engine.ipc.messages import StepFailed, StepResult
from semipd_engine.pacing.page import PacingPage


class Dispatcher:
    def __init__(self, workers: Workers, step_log: StepLog, unified: bool) -> None:
        self._workers = workers
        self._log = step_log
        self._unified = unified
        self._last_phase = Phase.DECODE

    def dispatch(self, scheduler: Scheduler, page: PacingPage, now: float) -> None:
        """Give every idle worker its next plan. Neither phase waits for the other, but in unified mode."""
        if self._unified:
            self._dispatch_unified(scheduler, now)
        else:
            for phase in (Phase.DECODE, Phase.PREFILL):  # decode first: it takes its blocks before a prompt does
                worker = self._workers.by_role[phase]
                if worker.ready and phase not in scheduler.in_flight:
                    self._send(phase, worker, self._plan(scheduler, phase, now), now)
        recall = scheduler.take_recall()
        if recall is not None:
            page.recall(recall)

    def book(self, scheduler: Scheduler, worker: Worker, result: StepResult | StepFailed, now: float) -> None:
        phase = next(iter(scheduler.in_flight)) if self._unified else Phase(worker.role)
        if isinstance(result, StepFailed):
            scheduler.plan_failed(phase, result)
        else:
            self._log.step(phase, scheduler.in_flight[phase], result)
            scheduler.book(phase, result, now)

    def lost(self, scheduler: Scheduler, worker: Worker, ending: Ending, now: float) -> None:
        for phase in tuple(Phase) if self._unified else (Phase(worker.role),):
            plan = scheduler.in_flight.get(phase)
            self._log.worker_lost(phase, worker.pid, plan.seq if plan is not None else None, ending, now)
            scheduler.worker_lost(phase, ending)

    def _dispatch_unified(self, scheduler: Scheduler, now: float) -> None:
        """One chunk, one decode step, one chunk ... as chunked prefill in one process does."""
        worker = self._workers.by_role[UNIFIED]
        if not worker.ready or scheduler.in_flight:
            return
        order = (Phase.PREFILL, Phase.DECODE) if self._last_phase is Phase.DECODE else (Phase.DECODE, Phase.PREFILL)
        for phase in order:
            plan = self._plan(scheduler, phase, now)
            if plan is not None:
                self._last_phase = phase
                self._send(phase, worker, plan, now)
                return

    def _plan(self, scheduler: Scheduler, phase: Phase, now: float) -> Plan | None:
        if phase is Phase.PREFILL:
            return scheduler.plan_prefill(now)
        one_by_one = self._unified and scheduler.has_prompts
        return scheduler.plan_decode(max_steps=1 if one_by_one else None)

    def _send(self, phase: Phase, worker: Worker, plan: Plan | None, now: float) -> None:
        if plan is not None:
            worker.send(plan)
            self._log.plan(phase, plan, worker.pid, now)
