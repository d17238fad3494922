"""Whose turn it is under a plan, for how long, and what a turn costs: stride arithmetic over what the seats say.

A quantum is charged when it ends, and counted while it runs: so each phase knows the other's turn as well as its own.
Decode's turns, where it waits for them, end with its steps, as far as the last ones tell what a step costs. Knows the
page; takes no lock, moves no thread and waits for nobody.
"""

from __future__ import annotations

import math

from semipd_engine.contract import PacingMode, PartitionPlan, Phase
from semipd_engine.pacing.page import PacingPage, Seat
from semipd_engine.pacing.stride import (
    MOST_HALVES,
    SCALE,
    Customer,
    charged,
    clamped,
    end_of_turn,
    ends_now,
    half_turn,
    is_cut,
    levelled,
    whose_turn,
)

REST = 8
"""A step over this is left at least of one that has taken as long as a whole one."""
WEIGHT = 4
"""Of what is known of a step's cost, beside the newest one."""

CUSTOMERS = {Phase.PREFILL: Customer.PREFILL, Phase.DECODE: Customer.DECODE}


def waits(plan: PartitionPlan, phase: Phase) -> bool:
    """Does the phase run in its turns only, while both are busy?"""
    return plan.mode is PacingMode.QUANTA or (plan.mode is PacingMode.TURNS and plan.waiting is phase)


class Turns:
    """As the worker of one phase sees them: of the seats it writes its own. Times are nanoseconds."""

    def __init__(self, page: PacingPage, phase: Phase, own: Seat, peer: Seat) -> None:
        self._page = page
        self._phase = phase
        self._rival = Phase.DECODE if phase is Phase.PREFILL else Phase.PREFILL
        self._own, self._peer = own, peer
        self._step, self._done = 0, 0
        """What a step holds of the CPUs, 0 before the first; and what the one in hand has held so far."""
        self._is_planned = False
        """Is it said when the turn is to end that this phase has?"""

    def begin_work(self) -> None:
        """A step that failed or was recalled does not go on."""
        self._done = 0

    def adopt(self) -> None:
        """Virtual time of another plan is another measure."""
        self._is_planned = False
        self._own.turn_end = 0

    def begin(self, now: int, cpus: int) -> None:
        """A quantum, which holds so many CPUs."""
        self._own.quantum_cpus, self._own.quantum_since_ns = max(1, cpus), now

    def end(self, plan: PartitionPlan, now: int) -> None:
        """The phase pays for the CPUs that it held: what its threads left idle nobody else could use."""
        held, vtime = _held(self._own, now), self._vtime_now(plan, self._phase, now)
        self._own.quantum_since_ns = 0
        self._own.vtime = vtime
        self._done += held

    def end_step(self, plan: PartitionPlan, now: int) -> bool:
        """A step of this phase, and with it the turn?"""
        if self._done:
            self._step = (self._step * (WEIGHT - 1) + self._done) // WEIGHT if self._step else self._done
            self._done = 0
        if not self._ends_with_steps(plan) or self._page.holder is not CUSTOMERS[self._phase]:
            return False
        ahead, step, half = self._ahead(plan, self._phase, now), self._gain(plan, self._step), _half_turn(plan)
        if ends_now(ahead, step, half):
            self._own.turn_end = self._own.turn_limit = 1
            return self.whose(plan, now) is not CUSTOMERS[self._phase]
        self._plan_turn(plan, ahead, step, step)
        return False

    def level(self, plan: PartitionPlan, now: int) -> None:
        """The phase has slept: it begins with neither credit nor debt, beside what the other's quantum costs by now.
        Decode, where it waits for its turns, has the first: so its step ends that it began alone."""
        self._own.vtime = levelled(self._own.vtime, self._vtime_now(plan, self._rival, now))
        self._page.idle_vtime = levelled(self._page.idle_vtime, self._own.vtime)
        self._is_planned = False
        if self._rival is Phase.DECODE and waits(plan, self._rival):
            self._page.holder = Customer.DECODE

    def charge_nobody(self, plan: PartitionPlan, wall_ns: int) -> None:
        held = wall_ns * max(1, len(plan.granted_cpus))
        self._page.idle_vtime = charged(self._page.idle_vtime, held, plan.idle_weight)

    def whose(self, plan: PartitionPlan, now: int) -> Customer:
        """Asked between two quanta of this phase."""
        lightest, cpus = _lightest(plan), max(1, len(plan.granted_cpus))
        peer = self._vtime_now(plan, self._rival, now)
        own = self._own.vtime = clamped(self._own.vtime, peer, lightest, cpus)
        vtimes = {CUSTOMERS[self._phase]: own, CUSTOMERS[self._rival]: peer}
        if plan.idle_weight:
            idle = self._page.idle_vtime = clamped(self._page.idle_vtime, min(own, peer), lightest, cpus)
            vtimes[Customer.NOBODY] = idle
        holder = self._page.holder
        turn = self._page.holder = whose_turn(vtimes, holder, self._end(plan, holder, limit=True))
        if turn is not CUSTOMERS[self._phase]:
            self._is_planned = False
        elif not self._is_planned and self._ends_with_steps(plan):
            step, done = self._gain(plan, self._step), self._gain(plan, self._done)
            self._plan_turn(plan, self._ahead(plan, self._phase, now), max(step - done, step // REST), step)
        return turn

    def left(self, plan: PartitionPlan, now: int, mine: bool) -> float:
        """Seconds until the turn ends that this phase has, or the other one."""
        holder = self._phase if mine else self._rival
        _, gain = _turn(plan, holder)
        lead = self._end(plan, CUSTOMERS[holder], limit=mine) - self._ahead(plan, holder, now)
        return lead / gain / 1e9 if gain > 0 else math.inf

    def _ends_with_steps(self, plan: PartitionPlan) -> bool:
        return self._phase is Phase.DECODE and waits(plan, self._phase) and self._gain(plan, self._step) > 0

    def _plan_turn(self, plan: PartitionPlan, ahead: int, rest: int, step: int) -> None:
        """A step may take as long again as the last ones before its turn ends without it: the last of it, cut off,
        would wait for a whole turn of the other phase."""
        half = _half_turn(plan)
        end = min(max(1, end_of_turn(ahead, rest, step, half)), MOST_HALVES * half)
        self._own.turn_limit = end if is_cut(rest, half) else min(end + step, MOST_HALVES * half)
        self._own.turn_end = end
        self._is_planned = True

    def _end(self, plan: PartitionPlan, holder: Customer, limit: bool) -> int:
        """How far ahead its turn ends, or ends at most."""
        decode = self._own if self._phase is Phase.DECODE else self._peer
        if holder is Customer.DECODE and decode.turn_end and waits(plan, Phase.DECODE):
            return decode.turn_limit if limit else decode.turn_end
        return _half_turn(plan)

    def _ahead(self, plan: PartitionPlan, phase: Phase, now: int) -> int:
        rival = self._rival if phase is self._phase else self._phase
        furthest = self._vtime_now(plan, rival, now)
        if plan.idle_weight:
            furthest = min(furthest, self._page.idle_vtime)
        return self._vtime_now(plan, phase, now) - furthest

    def _vtime_now(self, plan: PartitionPlan, phase: Phase, now: int) -> int:
        """What the seat has, and what its quantum that runs will have added by now."""
        seat = self._own if phase is self._phase else self._peer
        return charged(seat.vtime, _held(seat, now), plan.limit(phase).weight)

    def _gain(self, plan: PartitionPlan, held: int) -> int:
        """By how much this phase gets ahead while it holds so much of the CPUs, in turns of its own."""
        cpus, gain = _turn(plan, self._phase)
        return round(held / cpus * gain)


def _turn(plan: PartitionPlan, holder: Phase) -> tuple[int, float]:
    """How many CPUs a turn holds, and by how much its holder gets ahead in each nanosecond of it. One that does not
    wait for turns runs beside, on CPUs of its own."""
    rival = Phase.DECODE if holder is Phase.PREFILL else Phase.PREFILL
    is_beside = plan.mode is PacingMode.TURNS and plan.waiting is holder
    cpus = max(1, len(plan.limit(holder).cpus if is_beside else plan.granted_cpus))
    beside = len(plan.limit(rival).cpus) if is_beside else 0
    return cpus, SCALE * (cpus / plan.limit(holder).weight - beside / plan.limit(rival).weight)


def _held(seat: Seat, now: int) -> int:
    """What the quantum that runs has held of the CPUs; 0 if none does."""
    since = seat.quantum_since_ns
    return max(0, now - since) * seat.quantum_cpus if since else 0


def _lightest(plan: PartitionPlan) -> int:
    """Of the two phases: nobody's turns need not be long, and a rest of one in a hundred would make all of them so."""
    return min(plan.prefill.weight, plan.decode.weight)


def _half_turn(plan: PartitionPlan) -> int:
    return half_turn(_lightest(plan), max(1, len(plan.granted_cpus)))
