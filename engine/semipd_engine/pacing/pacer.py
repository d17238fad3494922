"""The pacer of a phase worker: makes a plan of the pacing page bind, at quanta of a few milliseconds.

A limit binds only while both phases are busy; a phase that is alone has all granted CPUs and all threads (L0).
`CORES`: while both are busy, this phase's threads are pinned to its own cores. `QUANTA`: the phases take turns, by
stride, under a lock. `UNLIMITED`: nothing binds. `RUNGS`: nothing binds here either; the limit is the process's own.

Knows the page and its own process; knows no model, no plan of work and no channel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from semipd_engine.contract import PacingMode, Phase
from semipd_engine.pacing.cpus import Processor
from semipd_engine.pacing.page import PacingPage, PlanInForce, Seat
from semipd_engine.pacing.regime import BINDING, Regime, regime_of, unlimited
from semipd_engine.pacing.stride import Customer
from semipd_engine.pacing.turns import CUSTOMERS, Turns, waits

GRACE_NS = 5_000_000
"""A phase counts as busy this long after its last step: between two plans it has not really stopped, and the limits
hold. Nobody waits for it."""
STALE_NS = 1_000_000_000
"""A peer whose heartbeat is older is stopped or dead, and nobody waits for it."""
PATIENCE_NS = 10_000_000
"""Longest wait for the bell: a peer that dies does not ring, neither does a new plan. Each wait that ends for nothing
disturbs the peer, whose thread has the CPU."""
IDLE_QUANTUM_SECONDS = 0.002
TURN_SECONDS = 0.002
"""Least work in a quantum while both phases are busy and take turns. Only the last ones before a turn ends are so
short: whoever is next waits for them, and the CPUs with it."""
ALONE_SECONDS = 0.02
"""While nobody waits for its end, because the peer rests, has cores of its own, or will not have the turn sooner:
within 25 ms the phase sees that this has changed. An end costs something: Python, and a product that begins again."""
WIDE_NS = 25_000_000
"""Longest that prefill lets a quantum end which decode began alone, on all CPUs."""

_TURNS = (PacingMode.QUANTA, PacingMode.TURNS)

log = logging.getLogger(__name__)


class PhasePacer:
    """One for each worker. `peer` is None where one process runs both phases: then no limit ever binds."""

    def __init__(self, page: PacingPage, phase: Phase, peer: Phase | None, processor: Processor, seat: int = 0) -> None:
        self._page = page
        self._phase = phase
        self._customer = CUSTOMERS[phase]
        self._seat = page.seats[phase][seat]
        self._peer: Seat | None = page.seats[peer][0] if peer is not None else None
        self._turns = None if self._peer is None else Turns(page, phase, self._seat, self._peer)
        self._processor = processor
        self._in_force: PlanInForce | None = None
        self._sequence = -1
        self._regime: Regime | None = None
        self._refused = False
        """The plan's CPUs could not be had."""
        self._unborn = False
        """Threads of the regime's were missing when it began. They are born with the work that first needs them, with
        the mask of the main thread: so all may roam until there are as many."""
        self._holds_lock = False
        self._slept = False
        """It is to begin level, which it does with its first quantum: the one that the peer began alone, and that a
        prompt lets end, is paid for by then. Paid for later it would be a debt, and streams stood still for it."""
        self._given_up_ns = 0
        """When decode began the quantum that did not end in time."""

    # ---- the worker's loop calls these ---------------------------------------------------------------------------

    def start(self, pid: int, generation: int) -> None:
        self._seat.clear()
        self._seat.generation = generation
        self._seat.idle_since_ns = self._processor.monotonic_ns()
        self._seat.pid = pid
        self.refresh()

    def refresh(self) -> None:
        """Beat, and adopt a new plan: also while there is nothing to do."""
        self._beat()
        self._adopt()
        self._tell_cpu_time()

    def wake(self) -> None:
        """A plan of work is in hand."""
        idle_since, now = self._seat.idle_since_ns, self._beat()
        self._slept = self._slept or bool(idle_since and now - idle_since > GRACE_NS)
        self._seat.idle_since_ns = 0
        if self._turns is not None:
            self._turns.begin_work()

    def rest(self) -> None:
        """The plan of work is done."""
        self._tell_cpu_time()
        self._seat.idle_since_ns = self._beat()
        self._processor.ring()

    def count_step(self) -> None:
        """A step of the plan in hand is done. A plan that is continued has no end for as long as its streams last, and
        a model that nobody paces has no quanta: so the worker beats, and follows a new plan, with its steps."""
        self._seat.steps += 1
        self.refresh()
        if self._turns is not None and self._in_force is not None:
            now = self._processor.monotonic_ns()
            if self._turns.end_step(self._in_force.plan, now):
                self._processor.ring()

    def peer_rests(self) -> bool:
        """Does nobody compute but this phase, if it does?"""
        return not self._peer_is_busy(self._beat())

    # ---- the model calls this ------------------------------------------------------------------------------------

    @contextmanager
    def quantum(self) -> Iterator[float]:
        """One piece of work: short while the phases take turns, longer where neither waits (it must notice when
        that changes), endless without a peer."""
        now = self._beat()
        self._adopt()
        contended = self._peer_is_busy(now)
        if contended and self._peer is not None and self._phase is Phase.PREFILL:
            self._let_end(self._peer)
        if self._slept and self._turns is not None and self._in_force is not None:
            self._slept = False
            self._turns.level(self._in_force.plan, self._beat())
            self._processor.ring()  # a peer that looked before waits for what it has now
        if contended and self._mode is PacingMode.TURNS and not self._waits:
            is_free = self._turn() is self._customer or (self._peer is not None and bool(self._peer.idle_since_ns))
            self._holds_lock = is_free and self._processor.try_lock()
        try:
            self._choose_regime(contended)
        except OSError as error:  # taken away since the plan was adopted: work goes on where it may
            if self._seat.applied_epoch:
                log.error("split epoch %d holds no more: %s", self._seat.applied_epoch, error)
            self._seat.applied_epoch, self._refused = 0, True
        if self._waits and self._peer is not None:
            self._take_turn(self._peer)
        seconds = self._begin(contended)
        self._seat.wide = int(not contended and self._mode in BINDING)
        try:
            yield seconds
        finally:
            self._tell_cpu_time()
            if self._turns is not None and self._in_force is not None:
                self._turns.end(self._in_force.plan, self._processor.monotonic_ns())
            if self._seat.wide:
                self._seat.wide = 0
                if self._peer_is_busy(self._processor.monotonic_ns()):
                    self._processor.ring()
            if self._holds_lock:
                self._holds_lock = False
                self._processor.unlock()
                if self._turn() is not self._customer:
                    self._processor.ring()

    # ---- inside --------------------------------------------------------------------------------------------------

    @property
    def _mode(self) -> PacingMode:
        return self._in_force.plan.mode if self._in_force is not None else PacingMode.UNLIMITED

    @property
    def _waits(self) -> bool:
        """Does this phase run in its turns only, while both are busy?"""
        return self._in_force is not None and waits(self._in_force.plan, self._phase)

    def _beat(self) -> int:
        now = self._processor.monotonic_ns()
        self._seat.heartbeat_ns = now
        return now

    def _peer_is_busy(self, now: int) -> bool:
        peer = self._peer
        if peer is None or peer.pid == 0 or now - peer.heartbeat_ns > STALE_NS:
            return False
        idle_since = peer.idle_since_ns
        return idle_since == 0 or now - idle_since < GRACE_NS

    def _adopt(self) -> None:
        """Take over a new plan, or try one again whose CPUs were not there. The applied epoch is written only if this
        process can really run under it."""
        sequence = self._page.plan_sequence
        is_new = sequence != self._sequence
        if not (is_new or self._refused) or (in_force := self._page.read_plan()) is None:
            return
        self._sequence = sequence
        self._in_force = in_force
        self._regime = None
        if is_new and self._turns is not None:
            self._turns.adopt()
        try:
            self._choose_regime(contended=True)
        except OSError as error:
            if is_new:
                log.error("split epoch %d cannot be applied: %s", in_force.epoch, error)
            self._refused = True
            return
        self._refused = False
        self._seat.applied_epoch = in_force.epoch

    def _choose_regime(self, contended: bool) -> None:
        """Raises OSError where none of the CPUs may be used: its threads stay where they are then."""
        if self._in_force is None:
            return
        if contended and self._peer is None:  # adopted, by a device that asks for no quanta perhaps
            regime = unlimited(self._in_force.plan)
        else:
            in_turn = self._holds_lock and not self._waits
            regime = regime_of(self._in_force.plan, self._phase, contended=contended, in_turn=in_turn, had=self._regime)
        if regime != self._regime or self._unborn:
            self._regime, self._unborn = regime, False
            try:
                if regime.spread:
                    self._unborn = self._processor.spread(regime.cpus) < regime.threads
                if regime.cpus and (self._unborn or not regime.spread):
                    self._processor.pin(regime.cpus)
            finally:
                self._processor.set_threads(regime.threads)

    def _begin(self, contended: bool) -> float:
        """A quantum of so many seconds of one core's work. None ends for somebody who would not run: within its turn a
        phase works on, and beside the other one's it looks for its own when that is over. What it has while the other
        one rests, or is stopped, is short: that may be back at once."""
        if self._turns is None:
            return math.inf
        if self._in_force is None or self._regime is None or self._mode not in _TURNS:
            return ALONE_SECONDS
        plan, regime, now = self._in_force.plan, self._regime, self._processor.monotonic_ns()
        self._turns.begin(now, len(regime.cpus))
        if not contended:
            return ALONE_SECONDS
        left, mine = 0.0, self._page.holder is self._customer
        if mine and self._holds_lock:
            left = self._turns.left(plan, now, mine=True) * regime.threads
        elif not (mine or self._holds_lock or self._waits):
            left = self._turns.left(plan, now, mine=False)
        return min(max(TURN_SECONDS, left), ALONE_SECONDS)

    def _let_end(self, peer: Seat) -> None:
        """Decode's quantum that began on all CPUs: two on one would hold up a step of all streams by as long. One that
        does not end in time, of a peer that died or was stopped, is waited for once."""
        until = self._processor.monotonic_ns() + WIDE_NS
        while True:
            heard, now, began = self._processor.heard(), self._beat(), peer.heartbeat_ns
            if not peer.wide or began == self._given_up_ns or not self._peer_is_busy(now):
                return
            if now >= until:
                self._given_up_ns = began
                return
            self._processor.wait(heard, min(PATIENCE_NS, until - now) / 1e9)

    def _take_turn(self, peer: Seat) -> None:
        """Wait until this phase is furthest behind, then hold the lock. A peer that rests, between two plans or for
        longer, or is stopped, is not waited for; neither is a lock that a stopped peer holds."""
        while self._waits:
            heard = self._processor.heard()
            if peer.idle_since_ns or not self._peer_is_busy(self._beat()):
                self._holds_lock = self._processor.try_lock()
                return
            turn = self._turn()
            if turn in (self._customer, Customer.NOBODY) and self._processor.try_lock():
                if turn is self._customer:
                    self._holds_lock = True
                    return
                self._sleep_for_nobody()
            else:
                self._processor.wait(heard, PATIENCE_NS / 1e9)
            self._adopt()

    def _turn(self) -> Customer:
        if self._turns is None or self._in_force is None:
            return self._customer
        return self._turns.whose(self._in_force.plan, self._processor.monotonic_ns())

    def _sleep_for_nobody(self) -> None:
        """Use up a quantum of the idle share, with the lock held so that the peer sleeps as well."""
        assert self._in_force is not None and self._turns is not None
        self._processor.sleep(IDLE_QUANTUM_SECONDS)
        self._turns.charge_nobody(self._in_force.plan, int(IDLE_QUANTUM_SECONDS * 1e9))
        self._processor.unlock()
        self._processor.ring()

    def _tell_cpu_time(self) -> None:
        self._seat.cpu_ns = self._processor.cpu_ns()
