"""Brings plans to workers and results to the scheduler: each queue of plans by itself.

A phase may have several workers, one for each rung, or one with several rungs. Its next step goes to the one that
`Router.next` names, and only when no step of the phase is in flight: so a phase never has steps in flight on two rungs,
its steps complete in the order in which they were planned, and one step clock for each phase is enough for the
quarantine of blocks.
"""

from __future__ import annotations

import msgspec

from semipd_engine.contract import Phase, Split
from semipd_engine.core.fault_isolation import Ending
from semipd_engine.core.holder import Holder
from semipd_engine.core.observation import Observer
from semipd_engine.core.plans import continuation, size_of
from semipd_engine.core.routing import Route, Router
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.step_log import StepLog
from semipd_engine.ipc.steps import PlanAnswer, PlanStale, StepFailed, StepPlan
from semipd_engine.pacing.page import PacingPage


class Dispatcher:
    def __init__(self, router: Router, step_log: StepLog, observer: Observer) -> None:
        self._router = router
        self._log = step_log
        self._observer = observer
        self._split = Split()
        """In force, for the observer."""
        self._running: dict[Phase, Route] = {}
        """Who has the phase's plan in flight."""
        self._recalled = 0

    def dispatch(self, scheduler: Scheduler, page: PacingPage, split: Split, now: float) -> None:
        """Give every idle phase its next plan. Neither phase waits for the other."""
        self._split = split
        plans: list[tuple[Phase, StepPlan]] = []
        for phase in (Phase.DECODE, Phase.PREFILL):  # decode first: it takes its blocks before a prompt does
            if self._router.next(phase, alone=False) is not None:
                plan = scheduler.plan(phase, now)
                plans += [(phase, plan)] if plan is not None else []
        for phase, plan in plans:
            route = self._router.next(phase, alone=_alone(scheduler))
            assert route is not None  # there was one, and nobody has been heard since
            self._send(phase, route, plan, now)
        self._observer.held_back(scheduler.held_back, now)
        recall = self._recall(scheduler)
        if recall is not None:
            page.recall(recall)
        else:
            self._send_behind(scheduler, now)

    def book(self, scheduler: Scheduler, holder: Holder, answer: PlanAnswer, now: float) -> None:
        phase = holder.phase
        if isinstance(answer, StepFailed):
            self._observer.step_lost(phase, now)
            scheduler.plan_failed(phase, answer)
        elif isinstance(answer, PlanStale):
            if scheduler.plan_stale(phase, answer.seq):
                self._observer.step_lost(phase, now)
        else:
            plan = scheduler.in_flight[phase]
            self._log.step(phase, plan, answer)
            self._observer.step_ended(phase, now, seconds=answer.seconds or None)
            scheduler.book(phase, answer, now)
            if (
                goes_on := scheduler.in_flight.get(phase)
            ) is not None:  # the plan's next step, or the next plan's first
                self._observer.step_began(phase, size_of(goes_on, answer.seq + 1 - goes_on.seq), self._split, now)

    def lost(self, scheduler: Scheduler, holder: Holder, ending: Ending, now: float) -> None:
        """Only the worker that had the plan in flight takes it along; an idle worker of the phase owes nothing."""
        phase = holder.phase
        running = self._running.get(phase)
        plan = scheduler.in_flight.get(phase) if running is not None and running.holder is holder else None
        self._log.worker_lost(phase, holder.pid, plan.seq if plan is not None else None, ending, now)
        if plan is not None:
            self._observer.step_lost(phase, now)
            scheduler.worker_lost(phase, ending)

    def _send(self, phase: Phase, route: Route, plan: StepPlan, now: float) -> None:
        """Complete: nothing is taken for granted of its worker."""
        self._running[phase] = route
        if phase is Phase.DECODE:
            self._recalled = 0  # that plan is over; with another resident its number comes again
        number = route.rung.index
        route.holder.send(msgspec.structs.replace(plan, rung=number) if plan.rung != number else plan)
        self._observer.step_began(phase, size_of(plan), self._split, now)
        self._log.plan(phase, plan, route.holder.pid, now, rung=number)

    def _send_behind(self, scheduler: Scheduler, now: float) -> None:
        """What continues decode's plan, if that is to run to its end and the next one's worker is the same."""
        plan = scheduler.in_flight.get(Phase.DECODE)
        if plan is None or plan.seq == self._recalled:
            return
        running = self._running[Phase.DECODE]
        if self._router.next(Phase.DECODE, alone=_alone(scheduler)) != running:
            return
        behind = scheduler.plan_behind()
        if behind is not None:
            running.holder.send(continuation(plan, behind))
            self._log.plan(Phase.DECODE, behind, running.holder.pid, now, rung=running.rung.index, behind=True)

    def _recall(self, scheduler: Scheduler) -> int | None:
        """End decode's plan at its next step when the scheduler wants to, or when its next step belongs elsewhere: the
        other phase came or went, a new partition is in force, or the worker is retiring."""
        recall = scheduler.take_recall()
        plan = scheduler.last_decode_plan
        if recall is None and plan is not None and plan.seq != self._recalled:
            route = self._router.next(Phase.DECODE, alone=_alone(scheduler))
            if route is not None and route != self._running[Phase.DECODE]:
                recall = plan.seq
        self._recalled = self._recalled if recall is None else recall
        return recall


def _alone(scheduler: Scheduler) -> bool:
    """Is a phase that runs now the only one?"""
    return len(scheduler.in_flight) == 1
