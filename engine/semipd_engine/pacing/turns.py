"""Whose turn it is under a plan, for how long, and what a turn costs: stride arithmetic over what the seats say.

A quantum is charged when it ends, and counted while it runs: so each phase knows the other's turn as well as its own.
Knows the page; takes no lock, moves no thread and waits for nobody.
"""

from __future__ import annotations

from semipd_engine.contract import PacingMode, PartitionPlan, Phase
from semipd_engine.pacing.page import PacingPage, Seat
from semipd_engine.pacing.stride import SCALE, Customer, charged, clamped, levelled, turn_left, whose_turn

CUSTOMERS = {Phase.PREFILL: Customer.PREFILL, Phase.DECODE: Customer.DECODE}


class Turns:
    """As the worker of one phase sees them: of the seats it writes its own. Times are nanoseconds."""

    def __init__(self, page: PacingPage, phase: Phase, own: Seat, peer: Seat) -> None:
        self._page = page
        self._phase = phase
        self._rival = Phase.DECODE if phase is Phase.PREFILL else Phase.PREFILL
        self._own, self._peer = own, peer

    def begin(self, now: int, cpus: int) -> None:
        """A quantum, which holds so many CPUs."""
        self._own.quantum_cpus, self._own.quantum_since_ns = max(1, cpus), now

    def end(self, plan: PartitionPlan, now: int) -> None:
        """The phase pays for the CPUs that it held: what its threads left idle nobody else could use."""
        vtime = self._vtime_now(plan, self._phase, now)
        self._own.quantum_since_ns = 0
        self._own.vtime = vtime

    def level(self, plan: PartitionPlan, now: int) -> None:
        """The phase has slept: it begins with neither credit nor debt, beside what the other's quantum costs by now."""
        self._own.vtime = levelled(self._own.vtime, self._vtime_now(plan, self._rival, now))
        self._page.idle_vtime = levelled(self._page.idle_vtime, self._own.vtime)

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
        turn = self._page.holder = whose_turn(vtimes, self._page.holder, lightest, cpus)
        return turn

    def left(self, plan: PartitionPlan, now: int, mine: bool) -> float:
        """Seconds until the turn ends that this phase has, or the other one. One that does not wait for turns runs
        beside, on CPUs of its own."""
        holder, rival = (self._phase, self._rival) if mine else (self._rival, self._phase)
        waits = plan.mode is PacingMode.TURNS and plan.waiting is holder
        held = len(plan.limit(holder).cpus if waits else plan.granted_cpus)
        pace = SCALE * max(1, held) / plan.limit(holder).weight
        rival_pace = SCALE * (len(plan.limit(rival).cpus) if waits else 0) / plan.limit(rival).weight
        furthest = self._vtime_now(plan, rival, now)
        if plan.idle_weight:
            furthest = min(furthest, self._page.idle_vtime)
        lightest, cpus = _lightest(plan), max(1, len(plan.granted_cpus))
        return turn_left(self._vtime_now(plan, holder, now), furthest, pace, rival_pace, lightest, cpus) / 1e9

    def _vtime_now(self, plan: PartitionPlan, phase: Phase, now: int) -> int:
        """What the seat has, and what its quantum that runs will have added by now."""
        seat = self._own if phase is self._phase else self._peer
        since = seat.quantum_since_ns
        return charged(seat.vtime, max(0, now - since) * seat.quantum_cpus if since else 0, plan.limit(phase).weight)


def _lightest(plan: PartitionPlan) -> int:
    return min(plan.prefill.weight, plan.decode.weight, plan.idle_weight or plan.decode.weight)
