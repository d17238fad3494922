"""Cutting stages for the pacer: every unit once and in order, no piece over its budget that could be smaller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from semipd_engine.model.cuts import Rates, run_stages
from semipd_engine.model.stage import Step, Work

pytestmark = pytest.mark.unit

STEP = cast(Step, None)  # these stages need none
RATES = Rates(read=1.0, products=1.0, scores=1.0)


@dataclass
class Recorded:
    """A stage of `count` units that take `seconds` each."""

    name: str
    count: int
    seconds: float
    pacer: Budgets
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def units(self, step: Step) -> int:
        return self.count

    def work(self, step: Step) -> Work:
        return Work(read=round(self.seconds * self.count))

    def run(self, step: Step, begin: int, end: int) -> None:
        self.ranges.append((begin, end))
        self.pacer.spent[-1].append((end - begin) * self.seconds)


class Budgets:
    """A pacer whose quanta have these budgets, by turns."""

    def __init__(self, *seconds: float) -> None:
        self.budgets = seconds
        self.spent: list[list[float]] = []

    @contextmanager
    def quantum(self) -> Iterator[float]:
        self.spent.append([])
        yield self.budgets[(len(self.spent) - 1) % len(self.budgets)]


def test_every_unit_runs_once_in_order_and_within_the_budget() -> None:
    rng = random.Random(1)
    for _ in range(300):
        pacer = Budgets(*(rng.choice([4.0, 20.0, 1e9]) for _ in range(3)))
        stages = [Recorded(str(i), rng.choice([1, 3, 40]), rng.choice([1, 2, 7, 30]), pacer) for i in range(6)]
        run_stages(stages, STEP, pacer, RATES)
        for stage in stages:
            assert stage.ranges[0][0] == 0 and stage.ranges[-1][1] == stage.count
            assert all(a[1] == b[0] for a, b in zip(stage.ranges, stage.ranges[1:], strict=False))
        for number, spent in enumerate(pacer.spent):
            budget = pacer.budgets[number % 3]
            assert spent, "an empty quantum"
            assert sum(spent) <= budget or len(spent) == 1
            assert len(spent) > 1 or spent[0] <= max(budget, 30)


def test_a_quantum_holds_as_many_stages_as_fit() -> None:
    pacer = Budgets(10.0)
    stages = [Recorded(str(i), 1, 3.0, pacer) for i in range(7)]
    run_stages(stages, STEP, pacer, RATES)
    assert [len(spent) for spent in pacer.spent] == [3, 3, 1]


def test_a_phase_without_a_peer_is_not_cut() -> None:
    pacer = Budgets(float("inf"))
    stages = [Recorded(str(i), 50, 3.0, pacer) for i in range(7)]
    run_stages(stages, STEP, pacer, RATES)
    assert len(pacer.spent) == 1
    assert [stage.ranges for stage in stages] == [[(0, 50)]] * 7


def test_a_matrix_product_is_bound_by_its_bytes_or_its_arithmetic() -> None:
    rates = Rates(read=10.0, products=2.0, scores=1.0)
    assert rates.seconds(Work(read=100, products=4)) == 10.0
    assert rates.seconds(Work(read=100, products=40, scores=5)) == 25.0
