"""The pacer on a fake machine: one clock, two phases that alternate as the stride arithmetic tells them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import pytest

from semipd_engine.contract import PacingMode, Phase, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.pacing.pacer import GRACE_NS, STALE_NS, TURN_SECONDS, PhasePacer
from semipd_engine.pacing.page import PacingPage
from semipd_engine.pacing.stride import CREDIT_NS, SCALE, TURN_NS, Customer, charged, clamped, whose_turn

pytestmark = pytest.mark.unit

CPUS = (0, 1)


class WouldWait(Exception):
    """The pacer wants to sleep: on the fake machine that ends the attempt."""


class Machine:
    """A processor whose clock moves only when told."""

    def __init__(self, clock: list[int], shared: list[Machine | None]) -> None:
        self.clock, self.shared = clock, shared
        self.cpu = 0
        self.rings = 0
        self.threads = 0
        self.cpus: tuple[int, ...] = ()
        self.is_spread = False
        self.waited = 0.0
        self.on_sleep: Callable[[float], None] = self._would_wait

    def _would_wait(self, seconds: float) -> None:
        raise WouldWait

    def monotonic_ns(self) -> int:
        return self.clock[0]

    def cpu_ns(self) -> int:
        return self.cpu

    def sleep(self, seconds: float) -> None:
        self.on_sleep(seconds)

    def heard(self) -> int:
        return 0

    def ring(self) -> None:
        self.rings += 1

    def wait(self, heard: int, seconds: float) -> None:
        self.waited = seconds
        raise WouldWait

    def set_threads(self, count: int) -> None:
        self.threads = count

    def pin(self, cpus: Sequence[int]) -> None:
        if 99 in cpus:
            raise OSError("no such CPU")
        self.cpus = tuple(cpus)
        self.is_spread = False

    def spread(self, cpus: Sequence[int]) -> None:
        self.cpus = tuple(cpus)
        self.is_spread = True

    def try_lock(self) -> bool:
        if self.shared[0] not in (None, self):
            return False
        self.shared[0] = self
        return True

    def unlock(self) -> None:
        self.shared[0] = None


class Pair:
    """Both phases of an engine on one fake machine."""

    def __init__(self, split: Split, cpus: tuple[int, ...] = CPUS) -> None:
        self.clock = [10 * STALE_NS]
        holder: list[Machine | None] = [None]
        self.page = PacingPage.create()
        self.page.write_plan(1, cpu_plan(split, cpus))
        self.machines = {phase: Machine(self.clock, holder) for phase in Phase}
        peers = {Phase.PREFILL: Phase.DECODE, Phase.DECODE: Phase.PREFILL}
        self.pacers = {p: PhasePacer(self.page, p, peers[p], self.machines[p]) for p in Phase}
        for number, phase in enumerate(Phase):
            self.pacers[phase].start(pid=100 + number, generation=1)

    def pass_time(self, ns: int) -> None:
        self.clock[0] += ns

    def quantum(self, phase: Phase, ns: int, cpu_ns: int | None = None) -> bool:
        """One quantum of `ns`, on two threads unless `cpu_ns` says otherwise. False if it is not the phase's turn."""
        try:
            with self.pacers[phase].quantum():
                self.pass_time(ns)
                self.machines[phase].cpu += 2 * ns if cpu_ns is None else cpu_ns
        except WouldWait:
            return False
        return True


def saturate(pair: Pair, rng: random.Random, milliseconds: int) -> dict[Phase, int]:
    """CPU time of each phase when both always want to run quanta of 1-5 ms; each looks again 0.2 ms after a refusal.

    A phase uses as many CPUs as its threads are pinned to when its quantum begins.
    """
    before = {p: pair.machines[p].cpu for p in Phase}

    def idle(seconds: float) -> None:
        pair.pass_time(int(seconds * 1e9))

    for phase in Phase:
        pair.machines[phase].on_sleep = idle
        pair.pacers[phase].wake()
    due = {phase: pair.clock[0] + number for number, phase in enumerate(Phase)}
    running: dict[Phase, tuple[AbstractContextManager[None], int]] = {}
    end = pair.clock[0] + milliseconds * 1_000_000
    while pair.clock[0] < end:
        phase = min(due, key=lambda p: due[p])
        pair.clock[0] = max(pair.clock[0], due[phase])
        if phase in running:
            quantum, ns = running.pop(phase)
            pair.machines[phase].cpu += ns * len(pair.machines[phase].cpus)
            quantum.__exit__(None, None, None)
        quantum, ns = pair.pacers[phase].quantum(), rng.randrange(1_000_000, 5_000_000)
        try:
            quantum.__enter__()
        except WouldWait:
            due[phase] = pair.clock[0] + 200_000
        else:
            running[phase] = quantum, ns
            due[phase] = pair.clock[0] + ns
    for quantum, _ in running.values():
        quantum.__exit__(None, None, None)
    return {p: pair.machines[p].cpu - before[p] for p in Phase}


TURNS = [
    (x, y, cpus)
    for x, y in ((80, 20), (20, 80), (90, 30), (10, 100), (70, 30))
    for cpus in ((0,), (0, 1), (0, 1, 2))
    if cpu_plan(Split(prefill=x, decode=y), cpus).mode is not PacingMode.CORES
]


@pytest.mark.parametrize(("x", "y", "cpus"), TURNS)
def test_turns_follow_the_ratio(x: int, y: int, cpus: tuple[int, ...]) -> None:
    pair = Pair(Split(prefill=x, decode=y), cpus)
    begin = pair.clock[0]
    used = saturate(pair, random.Random(x), 20_000)
    assert used[Phase.PREFILL] / used[Phase.DECODE] == pytest.approx(x / y, rel=0.03)
    assert sum(used.values()) > 0.85 * len(cpus) * (pair.clock[0] - begin)  # the rest: a turn that is not taken at once


def test_a_turn_costs_all_the_cpus_however_few_it_keeps_busy() -> None:
    pair = Pair(Split(prefill=80, decode=20), cpus=(0,))
    wall = dict.fromkeys(Phase, 0)
    for phase in Phase:
        pair.pacers[phase].wake()
    rng = random.Random(1)
    for _ in range(6000):
        phase = rng.choice(list(Phase))
        if pair.quantum(phase, 2_000_000, cpu_ns=2_000_000 if phase is Phase.DECODE else None):
            wall[phase] += 2_000_000
    assert wall[Phase.PREFILL] / wall[Phase.DECODE] == pytest.approx(4, rel=0.03)


def test_the_end_of_a_turn_rings_and_a_turn_that_goes_on_does_not() -> None:
    pair = Pair(Split(prefill=80, decode=20), cpus=(0,))
    for phase in Phase:
        pair.pacers[phase].wake()
    decode, prefill = (pair.machines[phase] for phase in (Phase.DECODE, Phase.PREFILL))
    for rings in (0, 1):  # decode wins the tie, and ends half a turn ahead
        assert pair.quantum(Phase.DECODE, 2_000_000)
        assert (decode.rings, prefill.rings) == (rings, 0)
    for number in range(16):  # from half a turn behind to half a turn ahead, at a quarter of decode's price
        assert not pair.quantum(Phase.DECODE, 2_000_000)
        assert prefill.rings == 0, number
        assert pair.quantum(Phase.PREFILL, 2_000_000)
    assert prefill.rings == 1
    assert pair.quantum(Phase.DECODE, 2_000_000)


def test_a_ring_wakes_a_waiter_and_is_never_missed() -> None:
    page = PacingPage.create()
    same_page = PacingPage(page.fd)  # as another process maps it
    heard = page.bell.heard
    same_page.bell.ring()
    begin = time.monotonic()
    page.bell.wait(heard, 60)  # rung between look and sleep
    waiter = threading.Thread(target=page.bell.wait, args=(page.bell.heard, 60))
    waiter.start()
    while waiter.is_alive():
        same_page.bell.ring()
        waiter.join(0.01)
    assert time.monotonic() - begin < 30  # nowhere near the time-outs
    page.bell.wait(page.bell.heard, 0.001)  # nobody rings: the time is up


def test_the_rest_of_a_hundred_stays_idle() -> None:
    pair = Pair(Split(prefill=40, decode=10))
    begin = pair.clock[0]
    used = saturate(pair, random.Random(0), 20_000)
    assert used[Phase.PREFILL] / used[Phase.DECODE] == pytest.approx(4, rel=0.05)
    capacity = 2 * (pair.clock[0] - begin)
    assert sum(used.values()) / capacity < 0.56  # half, and what the polls of this test lose


def test_alone_means_everything() -> None:
    pair = Pair(Split(prefill=50, decode=50), cpus=(0, 1, 2, 3))
    prefill = pair.machines[Phase.PREFILL]
    pair.pacers[Phase.PREFILL].wake()
    pair.pass_time(GRACE_NS)
    assert pair.quantum(Phase.PREFILL, 1000)
    assert (prefill.cpus, prefill.threads) == ((0, 1, 2, 3), 4)
    pair.pacers[Phase.DECODE].wake()
    assert pair.quantum(Phase.PREFILL, 1000)
    assert (prefill.cpus, prefill.threads) == ((0, 1), 2)
    pair.pacers[Phase.DECODE].rest()
    assert pair.quantum(Phase.PREFILL, 1000)
    assert prefill.threads == 2  # between two plans decode has not really stopped
    pair.pass_time(GRACE_NS)
    assert pair.quantum(Phase.PREFILL, 1000)
    assert (prefill.cpus, prefill.threads) == ((0, 1, 2, 3), 4)


@pytest.mark.parametrize(
    ("split", "cpus", "both"), [((50, 50), CPUS, 0.02), ((80, 20), CPUS, 4 / 375), ((50, 50), (0,), 0.004)]
)
def test_a_quantum_is_short_only_where_somebody_may_wait_for_its_end(
    split: tuple[int, int], cpus: tuple[int, ...], both: float
) -> None:
    """Own cores; turns for the second core, where half a turn is 4 ms x 2 CPUs / 0.2, gained by 1 / 0.2 a ms while the
    other one gains 1 / 0.8; turns for the only one."""
    pair = Pair(Split(prefill=split[0], decode=split[1]), cpus)
    decode = pair.pacers[Phase.DECODE]
    decode.wake()
    pair.pass_time(GRACE_NS)
    with decode.quantum() as seconds:
        assert seconds == 0.02
    pair.pacers[Phase.PREFILL].wake()
    with decode.quantum() as seconds:  # it wins the tie
        assert seconds == pytest.approx(both)


def test_a_turn_is_one_quantum_where_it_is_short_enough_and_so_is_what_runs_beside_it() -> None:
    pair = Pair(Split(prefill=80, decode=20))
    for phase in Phase:
        pair.pacers[phase].wake()
    quanta = 0
    while pair.pacers[Phase.DECODE]._turn() is Customer.DECODE:
        with pair.pacers[Phase.DECODE].quantum() as seconds:
            pair.pass_time(1_000_000)  # prefill, which stood still meanwhile, sees how long decode has had it
            with pair.pacers[Phase.PREFILL].quantum() as beside:
                assert beside == pytest.approx(max(TURN_SECONDS, seconds - 0.001 * (1 / 0.2) / (1 / 0.2 - 1 / 0.8)))
                pair.pass_time(round(seconds * 1e9) - 1_000_000)
        quanta += 1
    assert quanta <= 2


def test_in_a_turn_on_several_cpus_a_quantum_holds_the_work_of_all_its_threads() -> None:
    pair = Pair(Split(prefill=34, decode=66))
    for phase in Phase:
        pair.pacers[phase].wake()
    with pair.pacers[Phase.DECODE].quantum() as seconds:  # it wins the tie
        left = 4 * 2 / 0.34 / (2 / 0.66)  # ms of half a turn, at which both CPUs are paid for
        assert pair.machines[Phase.DECODE].threads == 2
        assert seconds == pytest.approx(2 * left / 1000)


def test_a_prompt_lets_the_quantum_end_that_decode_began_on_all_cpus() -> None:
    """Two threads on one CPU would hold up a step of all streams; a prompt can wait for 25 ms."""
    pair = Pair(Split())
    decode, prefill = (pair.machines[phase] for phase in (Phase.DECODE, Phase.PREFILL))
    pair.pacers[Phase.DECODE].wake()
    pair.pass_time(GRACE_NS)
    with pair.pacers[Phase.DECODE].quantum():
        assert decode.cpus == CPUS
        pair.pacers[Phase.PREFILL].wake()
        assert not pair.quantum(Phase.PREFILL, 1000)
        assert 0 < prefill.waited < 0.025
    assert decode.rings == 1
    assert pair.quantum(Phase.PREFILL, 1000)
    with pair.pacers[Phase.DECODE].quantum():
        assert decode.cpus == (1,)
        assert pair.quantum(Phase.PREFILL, 1000)
    assert decode.rings == 1


def test_a_quantum_that_does_not_end_holds_no_prompt_up() -> None:
    pair = Pair(Split())
    pair.pacers[Phase.DECODE].wake()
    pair.pass_time(GRACE_NS)
    pair.machines[Phase.PREFILL].wait = lambda heard, seconds: pair.pass_time(round(seconds * 1e9))
    with pair.pacers[Phase.DECODE].quantum():  # stopped, or killed, in the midst of it
        pair.pacers[Phase.PREFILL].wake()
        before = pair.clock[0]
        assert pair.quantum(Phase.PREFILL, 0)
        assert pair.clock[0] - before == 25_000_000
        for _ in range(30):  # until core sees the death, or the heartbeat is stale
            assert pair.quantum(Phase.PREFILL, 0)
        assert pair.clock[0] - before == 25_000_000
    pair.pass_time(GRACE_NS + 1)
    pair.pacers[Phase.DECODE].start(pid=103, generation=2)  # a new one, whose quanta are waited for as before
    pair.pacers[Phase.PREFILL].rest()
    pair.pass_time(GRACE_NS)
    pair.pacers[Phase.DECODE].wake()
    with pair.pacers[Phase.DECODE].quantum():
        pair.pacers[Phase.PREFILL].wake()
        before = pair.clock[0]
        assert pair.quantum(Phase.PREFILL, 0)
        assert pair.clock[0] - before == 25_000_000


def longest_waits(pair: Pair, rng: random.Random, milliseconds: int) -> dict[Phase, int]:
    """Both come and go, with plans of work of some quanta, each about as long as it may be. Nanoseconds from wanting a
    quantum to having it; whoever waits looks again each 0.2 ms."""
    longest, since, left = dict.fromkeys(Phase, 0), dict.fromkeys(Phase, 0), dict.fromkeys(Phase, 0)
    due = {phase: pair.clock[0] + number for number, phase in enumerate(Phase)}
    running: dict[Phase, AbstractContextManager[float]] = {}
    end = pair.clock[0] + milliseconds * 1_000_000
    for phase in Phase:
        pair.machines[phase].on_sleep = lambda seconds: pair.pass_time(round(seconds * 1e9))
    while pair.clock[0] < end:
        phase = min(due, key=due.__getitem__)
        now = pair.clock[0] = max(pair.clock[0], due[phase])
        if phase in running:
            running.pop(phase).__exit__(None, None, None)
            since[phase], left[phase] = now, left[phase] - 1
            if not left[phase]:
                pair.pacers[phase].rest()
                due[phase] = now + rng.randrange(30_000_000)
                continue
        elif not left[phase]:
            pair.pacers[phase].wake()
            since[phase], left[phase] = now, rng.randrange(1, 40)
        quantum = pair.pacers[phase].quantum()
        try:
            seconds = quantum.__enter__()
        except WouldWait:
            due[phase] = pair.clock[0] + 200_000
        else:
            running[phase] = quantum
            due[phase] = pair.clock[0] + round(seconds * 1e9 * rng.uniform(0.3, 1.3))
        longest[phase] = max(longest[phase], pair.clock[0] - since[phase])
    return longest


@pytest.mark.parametrize(
    ("x", "y", "cpus"), [(80, 20, 1), (80, 20, 2), (20, 80, 2), (50, 50, 1), (50, 50, 2), (100, 100, 3), (40, 20, 2)]
)
def test_nobody_starves_however_both_come_and_go(x: int, y: int, cpus: int) -> None:
    """A prompt waits for decode's quantum on all CPUs, both for their turns: neither for the other for ever. What
    somebody may lag behind, at his part of the time, is the longest; and the quantum that runs, and a rest's grace."""
    pair = Pair(Split(prefill=x, decode=y), tuple(range(cpus)))
    longest = longest_waits(pair, random.Random(x), 2000)
    assert max(longest.values()) <= CREDIT_NS * 100 / min(x, y) + 50_000_000


def test_a_sleeper_starts_level() -> None:
    pair = Pair(Split(prefill=80, decode=20))
    pair.pacers[Phase.PREFILL].wake()
    pair.pass_time(GRACE_NS)
    for _ in range(1000):
        assert pair.quantum(Phase.PREFILL, 5_000_000)  # five seconds alone
    pair.pacers[Phase.DECODE].wake()
    first = {phase: seats[0] for phase, seats in pair.page.seats.items()}
    assert first[Phase.DECODE].vtime == first[Phase.PREFILL].vtime
    used = saturate(pair, random.Random(0), 5_000)
    assert used[Phase.PREFILL] / used[Phase.DECODE] == pytest.approx(4, rel=0.1)


def test_the_larger_part_never_waits_and_has_all_cpus_in_its_turns() -> None:
    pair = Pair(Split(prefill=80, decode=20), cpus=(0, 1, 2))
    prefill, decode = pair.machines[Phase.PREFILL], pair.machines[Phase.DECODE]
    for phase in Phase:
        pair.pacers[phase].wake()
    assert pair.quantum(Phase.DECODE, 1_000_000)  # decode wins the tie
    assert (decode.cpus, decode.threads) == ((2,), 1)
    while pair.quantum(Phase.DECODE, 1_000_000):
        pass
    decode.try_lock()  # as if it were in the last quantum of its turn
    assert pair.quantum(Phase.PREFILL, 1_000_000)
    assert (prefill.cpus, prefill.threads) == ((0, 1), 2)
    decode.unlock()
    assert pair.quantum(Phase.PREFILL, 1_000_000)
    assert (prefill.cpus, prefill.threads, prefill.is_spread) == ((0, 1, 2), 3, True)
    assert not pair.quantum(Phase.DECODE, 1_000_000) or decode.cpus == (2,)


def test_a_peer_that_rests_rings_and_is_waited_for_until_its_grace_ends() -> None:
    pair = Pair(Split(prefill=80, decode=20), cpus=(0,))
    for phase in Phase:
        pair.pacers[phase].wake()
    while pair.quantum(Phase.DECODE, 1_000_000):
        pass
    rings = pair.machines[Phase.PREFILL].rings
    pair.pacers[Phase.PREFILL].rest()
    assert pair.machines[Phase.PREFILL].rings == rings + 1
    pair.pass_time(GRACE_NS // 5)
    assert not pair.quantum(Phase.DECODE, 1_000_000)
    assert pair.machines[Phase.DECODE].waited == pytest.approx(GRACE_NS * 0.8 / 1e9)
    pair.pass_time(GRACE_NS)
    assert pair.quantum(Phase.DECODE, 1_000_000)


def test_nobody_waits_for_a_stopped_peer() -> None:
    pair = Pair(Split(prefill=80, decode=20), cpus=(0,))
    for phase in Phase:
        pair.pacers[phase].wake()
    pair.machines[Phase.DECODE].try_lock()  # decode is stopped inside a quantum
    assert not pair.quantum(Phase.PREFILL, 1000)
    pair.pass_time(STALE_NS + 1)
    assert pair.quantum(Phase.PREFILL, 1000)
    assert pair.machines[Phase.DECODE].shared[0] is pair.machines[Phase.DECODE]  # its lock was not taken away


def test_a_plan_is_adopted_while_idle_and_only_if_it_can_be() -> None:
    pair = Pair(Split())
    seat = pair.page.seats[Phase.PREFILL][0]
    assert seat.applied_epoch == 1
    pair.page.write_plan(2, cpu_plan(Split(prefill=80, decode=20), CPUS))
    assert seat.applied_epoch == 1
    pair.pacers[Phase.PREFILL].refresh()
    assert seat.applied_epoch == 2
    pair.page.write_plan(3, cpu_plan(Split(), (98, 99)))  # decode's core does not exist
    for pacer in pair.pacers.values():
        pacer.refresh()
    assert (seat.applied_epoch, pair.page.seats[Phase.DECODE][0].applied_epoch) == (3, 1)


@pytest.mark.parametrize("split", [Split(), Split(prefill=80, decode=20), Split(prefill=20, decode=20)], ids=str)
def test_cpus_that_were_taken_away_cost_no_step(split: Split) -> None:
    """The node may shrink a container's CPUs at any time: the limit is not applied, and the work is done."""
    pair = Pair(Split())
    for phase in Phase:
        pair.machines[phase].on_sleep = lambda seconds: pair.pass_time(int(seconds * 1e9))
        pair.pacers[phase].wake()
    pair.page.write_plan(2, cpu_plan(split, (99, 100)))
    done = [phase for _ in range(20) for phase in Phase if pair.quantum(phase, 1_000_000)]
    assert set(done) == set(Phase)
    assert pair.page.seats[Phase.PREFILL][0].applied_epoch != 2
    assert pair.machines[Phase.PREFILL].shared == [None], "no lock is left behind"


def test_an_epoch_whose_cpus_go_later_is_not_applied_any_more() -> None:
    pair = Pair(Split())
    prefill, seat = pair.machines[Phase.PREFILL], pair.page.seats[Phase.PREFILL][0]
    pair.pacers[Phase.PREFILL].wake()
    pair.pass_time(GRACE_NS)
    assert pair.quantum(Phase.PREFILL, 1000) and seat.applied_epoch == 1

    def gone(cpus: Sequence[int]) -> None:
        raise OSError("no such CPU")

    prefill.pin = gone  # type: ignore[method-assign]
    pair.pacers[Phase.DECODE].wake()
    assert pair.quantum(Phase.PREFILL, 1000) and seat.applied_epoch == 0


def test_one_process_for_both_phases_is_never_limited() -> None:
    page = PacingPage.create()
    page.write_plan(1, cpu_plan(Split(prefill=20, decode=20), CPUS))
    machine = Machine([STALE_NS], [None])
    pacer = PhasePacer(page, Phase.PREFILL, None, machine)
    pacer.start(pid=1, generation=1)
    pacer.wake()
    with pacer.quantum():
        assert (machine.cpus, machine.threads, machine.shared) == (CPUS, 2, [None])


def test_stride_arithmetic() -> None:
    assert charged(0, 1000, 20) == 4 * charged(0, 1000, 80)
    assert clamped(0, CREDIT_NS * SCALE, 80, 2) == CREDIT_NS * SCALE - 2 * CREDIT_NS * SCALE // 80
    assert clamped(500, 100, 80, 2) == 500
    decode, prefill, nobody = Customer
    lead = TURN_NS // 2 * 2 * SCALE // 20
    for vtimes, holder, turn in (
        ({decode: 0, prefill: 0}, nobody, decode),  # a tie, and nobody has no share
        ({decode: 1, prefill: 0}, nobody, prefill),
        ({decode: 1, prefill: 1, nobody: 0}, nobody, nobody),
        ({decode: lead - 1, prefill: 0}, decode, decode),
        ({decode: lead, prefill: 0}, decode, prefill),
        ({decode: 1 - lead, prefill: 0}, prefill, prefill),
        ({decode: lead, prefill: lead, nobody: 1}, prefill, prefill),
        ({decode: lead, prefill: lead, nobody: 0}, prefill, nobody),
    ):
        assert whose_turn(vtimes, holder, lightest=20, cpus=2) is turn, (vtimes, holder)


def test_the_page_survives_a_writer_that_died_half_way() -> None:
    page = PacingPage.create()
    assert page.read_plan() is None
    page.write_plan(1, cpu_plan(Split(), CPUS))
    page._words[1] += 1  # odd: the writer is inside
    assert page.read_plan() is None
    page.write_plan(2, cpu_plan(Split(prefill=30, decode=60), CPUS))
    in_force = PacingPage(page.fd).read_plan()
    assert in_force is not None and in_force.epoch == 2
    assert in_force.plan.split == Split(prefill=30, decode=60) and in_force.plan.mode is PacingMode.QUANTA
