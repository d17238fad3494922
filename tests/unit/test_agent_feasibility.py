"""The verdict's memory: slow to condemn, sooner where nothing helps, slower to acquit."""

from __future__ import annotations

import itertools

import pytest

from semipd_agent.slo.feasibility import FEASIBLE_AFTER, INFEASIBLE_AFTER, SWAMPED, SWAMPED_AFTER, Judge

pytestmark = pytest.mark.unit


def condemned_after(pressure: float) -> int:
    judge = Judge()
    for second in range(60):
        judge = judge.told("TTFTBound", known=True, now=float(second), pressure=pressure)
        if judge.feasible is False:
            return second
    raise AssertionError("never")


def test_a_doubt_takes_ten_seconds_and_a_flood_three() -> None:
    assert condemned_after(SWAMPED - 0.1) == INFEASIBLE_AFTER
    assert condemned_after(SWAMPED) == SWAMPED_AFTER


def test_floods_that_come_and_go_do_not_flap() -> None:
    """Five seconds of every fifteen: condemned once, and not acquitted between them."""
    judge, verdicts = Judge(), list[bool | None]()
    for second in range(120):
        flood = second % 15 < 5
        judge = judge.told("TTFTBound" if flood else "", known=True, now=float(second), pressure=3.0 if flood else 0.5)
        verdicts.append(judge.feasible)
    assert sum(a != b for a, b in itertools.pairwise(verdicts)) <= 1 and verdicts[-1] is False
    for second in range(120, 120 + int(FEASIBLE_AFTER) + 1):
        judge = judge.told("", known=True, now=float(second), pressure=0.5)
    assert judge.feasible is True
