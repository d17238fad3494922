"""Decode's turns end with its steps, on a fake machine: how long a step waits, and what prefill is left."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import pytest
from tests.unit.pacing_bench import Pair, WouldWait

from semipd_engine.contract import Phase, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.pacing.stride import TURN_NS, Customer, end_of_turn, ends_now

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("ahead", "rest", "step", "end"),
    [
        (-10, 20, 20, 10),  # as long as a turn
        (-10, 25, 25, 15),
        (-10, 14, 14, 4),
        (-10, 12, 12, 14),  # two of them
        (-10, 3, 3, 11),
        (-10, 30, 30, 20),
        (-10, 32, 32, 6),  # two turns for one
        (-10, 60, 60, 10),
        (0, 5, 20, 5),
        (0, 1, 20, 1),
        (-30, 20, 20, 10),  # behind by more than a turn
    ],
)
def test_a_turn_ends_with_a_step(ahead: int, rest: int, step: int, end: int) -> None:
    assert end_of_turn(ahead, rest, step, half=10) == end


def test_a_turn_may_end_between_two_steps_but_not_before_it_has_begun() -> None:
    assert ends_now(ahead=5, step=20, half=10) and ends_now(ahead=10, step=1, half=10)
    assert not ends_now(ahead=5, step=4, half=10) and not ends_now(ahead=-10, step=90, half=10)


@dataclass(frozen=True)
class Played:
    gaps: list[float]
    """Between the ends of steps."""
    longest_wait: float
    """Of prefill."""
    part: float
    """Prefill's, of what both held."""


def play_steps(x: int, cpus: tuple[int, ...], steps: Iterable[float], seconds: float) -> Played:
    """Both always have work, and poll each 0.2 ms where they wait; steps of decode take so many milliseconds of a CPU,
    and prefill's quanta what they may. Times in milliseconds."""
    pair, steps = Pair(Split(prefill=x, decode=100 - x), cpus), iter(steps)
    for phase in Phase:
        pair.pacers[phase].wake()
    due = {phase: pair.clock[0] + number for number, phase in enumerate(Phase)}
    running: dict[Phase, tuple[AbstractContextManager[float], float]] = {}
    left, ends, held = next(steps) / 1e3, [0.0], dict.fromkeys(Phase, 0.0)
    longest, begin = 0, pair.clock[0]
    ended = begin
    while pair.clock[0] < begin + seconds * 1e9:
        phase = min(due, key=due.__getitem__)
        pair.clock[0] = max(pair.clock[0], due[phase])
        if phase in running:
            quantum, work = running.pop(phase)
            quantum.__exit__(None, None, None)
            held[phase] += work
            if phase is Phase.PREFILL:
                ended = pair.clock[0]
            else:
                left -= work
                if left < 1e-6:
                    pair.pacers[phase].count_step()
                    ends.append((pair.clock[0] - begin) / 1e6)
                    left = next(steps) / 1e3
        quantum = pair.pacers[phase].quantum()
        try:
            allowed = quantum.__enter__()
        except WouldWait:
            due[phase] = pair.clock[0] + 200_000
            continue
        work = min(allowed, left) if phase is Phase.DECODE else allowed
        longest = max(longest, pair.clock[0] - ended) if phase is Phase.PREFILL else longest
        running[phase] = quantum, work
        due[phase] = pair.clock[0] + max(1000, round(work / len(pair.machines[phase].cpus) * 1e9))
    for quantum, _ in running.values():
        quantum.__exit__(None, None, None)
    gaps = [after - before for before, after in pairwise(ends)]
    return Played(gaps[5:], longest / 1e6, held[Phase.PREFILL] / sum(held.values()))


def about(milliseconds: float) -> Iterator[float]:
    rng = random.Random(1)
    while True:
        yield milliseconds * rng.uniform(0.9, 1.1)


@pytest.mark.parametrize("milliseconds", [5, 20, 27, 40, 85])
@pytest.mark.parametrize(("x", "cpus"), [(66, (0, 1)), (70, (0, 1)), (80, (0, 1)), (60, (0,))])
def test_the_longest_step_waits_little_longer_than_others(x: int, cpus: tuple[int, ...], milliseconds: int) -> None:
    """Prefill's part of the time falls on all steps alike, but where several have room in a turn: then the last waits
    for one turn."""
    played = play_steps(x, cpus, about(milliseconds), seconds=8)
    turn = TURN_NS / 1e6 * x / (100 - x)
    mean = sum(played.gaps) / len(played.gaps)
    assert played.part == pytest.approx(x / 100, abs=0.02)
    assert max(played.gaps) <= max(1.3 * mean, milliseconds + 1.7 * turn)


def test_no_step_of_about_a_turn_waits_for_two() -> None:
    """Where turns ended anywhere, a step of 40 ms at 66/34 waited for none of prefill's or for two: 45 to 78 ms."""
    gaps = play_steps(66, (0, 1), about(40), seconds=8).gaps
    assert min(gaps) > 48 and max(gaps) < 69


@pytest.mark.parametrize(
    "steps", [[20] * 30 + [400] + [20] * 3000, [85] * 10 + [850] + [85] * 1000, [85, 255] * 1000, [255, 255, 85] * 1000]
)
def test_a_step_that_takes_far_longer_than_the_last_ones_shuts_nobody_out(steps: list[float]) -> None:
    """Its turn ends without it, before prefill's credit does, and prefill's turn makes up for it."""
    played = play_steps(60, (0,), steps, seconds=8)
    assert played.longest_wait < 2.5 * TURN_NS / 1e6 + 2.5  # the last quantum, and a poll
    assert played.part == pytest.approx(0.6, abs=0.01)


def test_another_plan_ends_the_turn_of_the_one_before() -> None:
    """Virtual time of one with a weight of 1 is sixty times as much."""
    pair = Pair(Split(prefill=99, decode=1), cpus=(0,))
    for phase in Phase:
        pair.pacers[phase].wake()
    for _ in range(20):
        assert pair.quantum(Phase.DECODE, 500_000)
        pair.pacers[Phase.DECODE].count_step()
        while pair.quantum(Phase.PREFILL, 2_000_000):
            pass
    assert pair.quantum(Phase.DECODE, 100_000)
    seat = pair.page.seats[Phase.DECODE][0]
    assert seat.turn_end
    pair.page.write_plan(2, cpu_plan(Split(prefill=60, decode=40), (0,)))
    waited = 0
    while waited <= 2.5 * TURN_NS / 1e6 and not pair.quantum(Phase.PREFILL, 1_000_000):
        assert pair.quantum(Phase.DECODE, 1_000_000) or pair.page.holder is Customer.PREFILL
        waited += 1
    assert waited <= 2.5 * TURN_NS / 1e6
