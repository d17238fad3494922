"""`make bench-slo`: what its figures say against the claims, and which trials are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.unit.slo_runs import KNEES, arm, arms, holds, knee, run, trial, whole

from bench.cpu.schedule import Sample
from bench.slo import plan
from bench.slo.plan import AGAIN, ARMS, AUTO, ONE, PREDICTED, SHIFT, STILL, WHOLE
from bench.slo.run import most
from bench.slo.steps import Held
from bench.slo.verdicts import TRIES, Run, outcome

pytestmark = pytest.mark.unit


def test_a_run_that_keeps_all_holds() -> None:
    found = whole()
    assert outcome(found) == "holds" and set(holds(found)) == {True}
    assert found.left() == []


@pytest.mark.parametrize(
    ("found", "place"),
    [
        (whole(still=87.9), -2),
        (whole(shift=90.5), -1),
        (replace(whole(), held=[Held("p", "decode", 9, 10.0, 10.6)] * 20), 3),
        (replace(whole(), held=[Held("p", "decode", 9, 10.0, e) for e in (*[10.1] * 9, 12.0)]), 3),
    ],
)
def test_what_falls_short_is_told(found: Run, place: int) -> None:
    assert holds(found)[place] is False
    assert outcome(found) == "falls short"
    assert holds(found).count(False) == 1


def test_a_run_whose_same_arm_differs_says_nothing_of_auto() -> None:
    found = whole(again=93.5)
    assert found.void and outcome(found) == "void"
    assert holds(found)[-2:] == [None, None]
    assert whole(again=92.9).void is False
    assert run(arms(STILL, {})).void is None, "the shift is not measured yet"


def test_a_late_client_is_told() -> None:
    samples = [*whole().samples, arm(SHIFT, ONE, 90.0, late=50.1)]
    assert holds(run(samples))[-3] is False
    assert holds(run([arm(SHIFT, ONE, 90.0, late=50.0)]))[-3] is True


def test_a_knee_that_is_further_off_than_a_tenth_falls_short() -> None:
    def verdict(samples: Sequence[Sample]) -> bool | None:
        return holds(run(samples))[PREDICTED.index(WHOLE)]

    assert verdict(knee(WHOLE, 2.1, 2.2)) is True
    assert verdict(knee(WHOLE, 2.2, 2.35)) is False
    assert verdict([trial(WHOLE, 0, 2.3, True)]) is False, "above that by far, wherever it ends"
    assert verdict([trial(WHOLE, 0, 2.1, True)]) is None
    assert verdict([]) is None


def test_the_best_fixed_split_is_taken_in_hindsight_and_the_doubled_one_by_its_mean() -> None:
    found = run(arms(SHIFT, {WHOLE: 92.0, AGAIN: 90.0, "100/60": 90.5, "100/30": 80.0, AUTO: 91.5, ONE: 99.0}))
    assert found.fixed(SHIFT) == {"100/100": 91.0, "100/60": 90.5, "100/30": 80.0}
    assert holds(found)[-1] is None, "without the still load it is not known whether the run is void"


def test_a_round_that_is_missing_leaves_the_arm_open() -> None:
    assert run([arm(STILL, AUTO, 90.0, 0)]).attained(STILL, AUTO) is None
    assert run([arm(STILL, AUTO, 90.0, 0), arm(STILL, AUTO, 80.0, 1)]).attained(STILL, AUTO) == 85.0


def test_knees_go_by_turns_then_rounds_of_arms() -> None:
    turns = run().left()
    assert [turn.contender for turn in turns[:3]] == list(PREDICTED)
    assert len(turns) == 3 + 3 * len(ARMS)
    assert most(run()) == 3 * 4 + 3 * len(ARMS)
    first = trial(PREDICTED[0], 0, plan.next_rate({}, KNEES[PREDICTED[0]], 4) or 0.0, True)
    assert [turn.contender for turn in run([first]).left()[:3]] == [*PREDICTED[1:], PREDICTED[0]]


def test_a_trial_that_is_lost_again_and_again_is_left_out() -> None:
    lost = replace(arm(STILL, AUTO, 0.0), error="TimeoutError: ", figures={})
    assert lost.turn in run([lost]).left()
    assert lost.turn not in run([lost] * TRIES).left()
    first = run().left()[0]
    assert first not in run([Sample(first, error="OSError: ")] * TRIES).left()
