"""Whose turn it is: two phases that alternate as the stride arithmetic tells them, on a fake machine."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager

import pytest
from tests.unit.pacing_bench import Pair, WouldWait, saturate

from semipd_engine.contract import PacingMode, Phase, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.pacing.pacer import GRACE_NS, STALE_NS, TURN_SECONDS
from semipd_engine.pacing.stride import (
    CREDIT_NS,
    SCALE,
    TURN_NS,
    Customer,
    charged,
    clamped,
    half_turn,
    whose_turn,
)
from semipd_engine.pacing.turns import CUSTOMERS

pytestmark = pytest.mark.unit


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


@pytest.mark.parametrize(("x", "y"), [(40, 10), (60, 39), (60, 30)])
def test_the_rest_of_a_hundred_stays_idle(x: int, y: int) -> None:
    pair = Pair(Split(prefill=x, decode=y))
    begin = pair.clock[0]
    used = saturate(pair, random.Random(0), 20_000)
    assert used[Phase.PREFILL] / used[Phase.DECODE] == pytest.approx(x / y, rel=0.05)
    capacity = 2 * (pair.clock[0] - begin)
    lost_by_polls = 0.06
    assert (x + y) / 100 - lost_by_polls < sum(used.values()) / capacity < (x + y) / 100 + lost_by_polls


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
            if rng.random() < 0.2:
                pair.pacers[phase].count_step()
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
    ("x", "y", "cpus"),
    [(80, 20, 1), (80, 20, 2), (20, 80, 2), (50, 50, 1), (50, 50, 2), (100, 100, 3), (40, 20, 2), (60, 39, 2)],
)
def test_nobody_starves_however_both_come_and_go(x: int, y: int, cpus: int) -> None:
    """A prompt waits for decode's quantum on all CPUs, both for their turns: neither for the other for ever. What
    somebody may lag behind, at his part of the time, is the longest; and the quantum that runs."""
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
    assert pair.quantum(Phase.DECODE, 0)
    first = {phase: seats[0] for phase, seats in pair.page.seats.items()}
    assert first[Phase.DECODE].vtime == first[Phase.PREFILL].vtime
    used = saturate(pair, random.Random(0), 5_000)
    assert used[Phase.PREFILL] / used[Phase.DECODE] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("early_ns", [0, 8_000_000, 16_000_000])
def test_streams_do_not_stand_still_for_the_quantum_that_they_began_alone(early_ns: int) -> None:
    """A prompt that comes while decode has all CPUs waits for the end of its quantum; both are level then, and decode
    goes on with what it began."""
    pair = Pair(Split(prefill=70, decode=30))
    pair.pacers[Phase.DECODE].wake()
    pair.pass_time(GRACE_NS + 1)
    with pair.pacers[Phase.DECODE].quantum():
        pair.pass_time(early_ns)
        pair.pacers[Phase.PREFILL].wake()
        assert not pair.quantum(Phase.PREFILL, 1_000_000)
        pair.pass_time(20_000_000 - early_ns)
    waited = 0
    while not pair.quantum(Phase.DECODE, 1_000_000):
        assert pair.quantum(Phase.PREFILL, 1_000_000)
        waited += 1
    assert waited <= 1


def test_decode_that_looked_before_a_prompt_was_level_is_woken_when_it_is() -> None:
    """It saw prefill far behind, and slept: nobody else would ring."""
    pair = Pair(Split(prefill=66, decode=34))
    decode, prefill = pair.pacers[Phase.DECODE], pair.pacers[Phase.PREFILL]
    decode.wake()
    pair.pass_time(GRACE_NS + 1)
    assert pair.quantum(Phase.DECODE, 20_000_000)
    prefill.wake()
    assert not pair.quantum(Phase.DECODE, 1_000_000)
    rings = pair.machines[Phase.PREFILL].rings
    with prefill.quantum():
        assert pair.machines[Phase.PREFILL].rings == rings + 1
    assert pair.quantum(Phase.DECODE, 1_000_000)


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


def test_a_peer_that_rests_rings_and_is_not_waited_for() -> None:
    """Between two plans it does not compute. What runs meanwhile is short, for the next plan may be there at once."""
    pair = Pair(Split(prefill=80, decode=20), cpus=(0,))
    for phase in Phase:
        pair.pacers[phase].wake()
    while pair.quantum(Phase.DECODE, 1_000_000):
        pass
    rings = pair.machines[Phase.PREFILL].rings
    pair.pacers[Phase.PREFILL].rest()
    assert pair.machines[Phase.PREFILL].rings == rings + 1
    with pair.pacers[Phase.DECODE].quantum() as seconds:
        assert seconds == TURN_SECONDS
    pair.pacers[Phase.PREFILL].wake()
    assert not pair.quantum(Phase.DECODE, 1_000_000), "what it had meanwhile was not for nothing"


@pytest.mark.parametrize("rester", list(Phase))
def test_what_a_phase_has_while_the_other_one_rests_is_short(rester: Phase) -> None:
    """In the midst of a turn of the one that never waits, which is back at once and finds the lock taken."""
    x = 66 if rester is Phase.PREFILL else 34
    pair = Pair(Split(prefill=x, decode=100 - x))
    other = next(phase for phase in Phase if phase is not rester)
    for phase in Phase:
        pair.pacers[phase].wake()
    pair.page.holder = CUSTOMERS[rester]
    pair.page.seats[Phase.DECODE][0].turn_end = pair.page.seats[Phase.DECODE][0].turn_limit = 10**9  # of its last one
    assert pair.quantum(rester, 1_000_000)
    pair.pacers[rester].rest()
    with pair.pacers[other].quantum() as seconds:
        assert seconds == TURN_SECONDS
        assert pair.machines[other].shared == [pair.machines[other]]
        pair.pacers[rester].wake()
        with pair.pacers[rester].quantum() as beside:
            assert beside == TURN_SECONDS


def test_a_phase_with_cores_of_its_own_does_not_wait_for_one_that_rests_in_its_turn() -> None:
    pair = Pair(Split(prefill=66, decode=34))
    for phase in Phase:
        pair.pacers[phase].wake()
    assert pair.quantum(Phase.DECODE, 1_000_000)
    pair.pacers[Phase.DECODE].rest()
    with pair.pacers[Phase.PREFILL].quantum() as seconds:
        assert pair.machines[Phase.PREFILL].cpus == (0, 1) and seconds == TURN_SECONDS


def test_nobody_waits_for_a_stopped_peer() -> None:
    pair = Pair(Split(prefill=80, decode=20), cpus=(0,))
    for phase in Phase:
        pair.pacers[phase].wake()
    pair.machines[Phase.DECODE].try_lock()  # decode is stopped inside a quantum
    assert not pair.quantum(Phase.PREFILL, 1000)
    pair.pass_time(STALE_NS + 1)
    assert pair.quantum(Phase.PREFILL, 1000)
    assert pair.machines[Phase.DECODE].shared[0] is pair.machines[Phase.DECODE]  # its lock was not taken away


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
        assert whose_turn(vtimes, holder, half_turn(lightest=20, cpus=2)) is turn, (vtimes, holder)
