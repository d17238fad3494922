"""`make bench-slo`: what is planned from a profile, and steps that it has not measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.unit.slo_runs import PLAN, profile, times

from bench.slo import plan
from bench.slo.plan import ARMS, FULL, PREDICTED, QUICK, SHIFT, STILL, Plan
from bench.slo.prediction import model_of
from bench.slo.steps import POINTS, Held, held, quantiles, spread
from semipd_engine.contract import Phase, Split
from semipd_engine.profiler.sweep import SPLITS, WHOLE, Limits, points

pytestmark = pytest.mark.unit


def test_the_same_profile_and_figures_give_the_same_plan() -> None:
    about = {"commit": "c", "machine": "m", "at": "now"}
    alone = {"ttft_ms": 260.2, "tpot_ms": 11.0}
    first, again = (plan.plan(profile(), "d", alone, QUICK, number=3, **about) for _ in range(2))
    assert first == again == Plan.of_json(json.loads(json.dumps(first.as_json())))
    assert (first.ttft_ms, first.tpot_ms) == (1301, 33)
    assert first.rates[STILL] == pytest.approx(plan.STILL_LOAD * max(first.knees.values()), abs=1e-3)
    slow = plan.plan(profile(2.0), "d", {"ttft_ms": 520.4, "tpot_ms": 22.0}, QUICK, number=3, **about)
    for split in PREDICTED:
        assert slow.knees[split] / first.knees[split] == pytest.approx(0.5, rel=0.07)


def test_a_quick_run_plays_the_beginning_of_the_full_runs_stretches_at_their_rates() -> None:
    """By a stretch of its own few seconds the queue that is left at its end would count as served."""
    quick, full = (replace(PLAN, effort=effort) for effort in (QUICK, FULL))
    for trace in plan.ORDER:
        predicted = plan.requests(trace, 1.0, QUICK, 1)
        assert predicted == plan.requests(trace, 1.0, FULL, 1)
        assert predicted[-1].at > 20 * PLAN.ttft_ms / 1e3
    told, whole = quick.load(SHIFT, 0), full.load(SHIFT, 0)
    for turn, label in enumerate(("1 conv", "2 code", "3 conv")):
        mine, all_of_it = ([one for one in load if one.label == label] for load in (told, whole))
        assert 0 < len(mine) < len(all_of_it)
        assert [one.prompt for one in mine] == [one.prompt for one in all_of_it[: len(mine)]]
        since = [one.at - turn * QUICK.phase_seconds for one in mine]
        assert since == pytest.approx([one.at - turn * FULL.phase_seconds for one in all_of_it[: len(mine)]])
        assert max(since) < QUICK.phase_seconds
    assert whole[-1].at > 2 * FULL.phase_seconds + QUICK.phase_seconds


def test_a_profile_of_a_machine_that_was_busy_is_no_plan() -> None:
    about = {"commit": "c", "machine": "m", "at": "now"}
    with pytest.raises(
        plan.UnplannableError, match=r"no rate keeps TTFT 1301 ms and TPOT 33 ms .*begin on a quiet one"
    ):
        plan.plan(profile(20.0), "d", {"ttft_ms": 260.2, "tpot_ms": 11.0}, QUICK, number=3, **about)


def test_each_arm_of_a_round_is_asked_the_same_and_each_round_something_else() -> None:
    assert PLAN.load(STILL, 0) == PLAN.load(STILL, 0) != PLAN.load(STILL, 1)
    assert replace(PLAN, number=2).load(SHIFT, 0) != PLAN.load(SHIFT, 0)
    labels = [request.label for request in PLAN.load(SHIFT, 0)]
    assert list(dict.fromkeys(labels)) == ["1 conv", "2 code", "3 conv"]
    assert sorted(plan.arms(5)) == sorted(ARMS)
    assert plan.arms(0)[0] != plan.arms(1)[0]


def test_another_rate_brings_the_same_requests_closer_together() -> None:
    slow, fast = PLAN.crowd(1.0), PLAN.crowd(4.0)
    assert [one.prompt for one in slow] == [one.prompt for one in fast]
    assert [one.at for one in slow] == pytest.approx([4 * one.at for one in fast])


@pytest.mark.parametrize("edge", [1.0, 1.75, 2.0, 2.3])
def test_a_knee_near_the_prediction_is_found_in_four_trials(edge: float) -> None:
    trials = dict[float, bool]()
    while (rate := plan.next_rate(trials, 2.0, 4)) is not None:
        trials[rate] = rate <= edge
    good, bad = plan.bracket(trials)
    if edge > 1.5:
        assert good is not None and bad is not None
        assert good <= edge < bad <= good * plan.STEP * 1.001
    else:
        assert good is None and bad is not None and bad < 1.5, "too far off to be found: it lies below"


def test_no_held_out_size_was_measured_by_the_profile() -> None:
    swept = points(Limits(2048, 64, 256, 46_000), [Split(prefill=x, decode=y) for x, y in SPLITS])
    for size in ("rows", "context", "prompt"):
        assert not {getattr(p, size) for p in POINTS} & {getattr(p, size) for p in swept} - {0}, size
    assert not {p.split for p in POINTS} & {p.split for p in swept} - {WHOLE}
    assert len(spread(8)) == 8 and spread(99) == list(POINTS)


def test_a_step_that_takes_what_the_model_says_has_no_error() -> None:
    model = model_of(profile())
    before = [times(Phase.PREFILL, 64, 5, 5.0)]
    after = [times(Phase.PREFILL, 64, 15, 5.0 + 10 * 0.064), times(Phase.DECODE, 8, 10, 0.0, 10 * 2 * 0.018)]
    found = {one.phase: one for one in held(model, "p", before, after)}
    assert {phase: one.steps for phase, one in found.items()} == {"prefill": 10, "decode": 10}
    assert found["prefill"].measured_ms == pytest.approx(64.0)
    assert found["decode"].predicted_ms == pytest.approx(36.0, rel=0.04)
    assert abs(found["prefill"].error) < 0.04
    assert held(model, "p", before, [times(Phase.PREFILL, 64, 7, 5.2)]) == [], "two steps say nothing"


def test_errors_count_by_their_amount() -> None:
    assert quantiles([Held("p", "decode", 9, 10.0, 10 + error) for error in (-2.0, 0.1, 0.2)]) == pytest.approx((2, 20))
