"""A split is held against what the model said of it: two stretches behind are regretted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semipd_agent.contract import SLO, Bounds
from semipd_agent.slo import predictive
from semipd_agent.slo.future import Constants, Setting
from semipd_agent.slo.hindsight import LEAST_SECONDS, Watch
from semipd_agent.slo.load import Load, Seen
from semipd_agent.slo.predictive import State
from semipd_agent.slo.replay import Job
from semipd_agent.slo.step_model import ASSUMED, StepModel
from semipd_engine import contract as engine
from semipd_engine.contract import Observation

pytestmark = pytest.mark.unit
PREFILLS = engine.Split(prefill=100, decode=40)


def watched(realised: float, *, common: tuple[float, float] | None = (0.0, 0.0), blamed: float | None = -0.5) -> State:
    """Two prompts of 0.2 s each second under 100/40, none beside decode; all of them took `realised` seconds. As early
    as a stretch is judged; by default the one before was far behind."""
    slo, here, now = SLO(ttft_milliseconds=1000), PREFILLS, 70.0 + LEAST_SECONDS
    setting = Setting(slo, here, Bounds())
    count = int(2 * LEAST_SECONDS)
    came = {n: Seen(n, 70.0 + n / 2, 1000, 1.0, output=1, ttft=realised, tpot=None) for n in range(count)}
    model = StepModel(replace(ASSUMED, prefill=(0.0, 2e-4, 0.0), measured=True))
    load, o = replace(Load(), model=model, at=now, seen=came), Observation(core_id="c", at=now)
    watch = Watch(70.0, here, (), ())
    state = State(moved_at=69.0, promised=here, common=common, blamed=blamed, watch=watch)
    return predictive._held_against_reality(state, here, o, load, setting)


def test_a_split_that_stays_behind_the_model_is_regretted() -> None:
    assert watched(3.0).bias[str(PREFILLS)][0] == -Constants().most_bias
    assert watched(0.2).bias == {}, "it gave what it should"
    assert watched(0.2, common=(0.2, 0.01)).bias == {}, "that the split before it gave more than it should is no fault"
    assert watched(3.0, common=None).bias == {}, "nobody knows what another would have given"
    assert watched(3.0, common=(-1.05, 0.0)).bias == {}, (
        "the split before it stayed as far behind: no fault of this one"
    )


def test_one_stretch_behind_is_a_busy_half_minute() -> None:
    """It is remembered, and the next one decides: what both show is held against the split, or nothing is."""
    first = watched(3.0, blamed=None)
    assert first.bias == {} and first.blamed is not None
    assert watched(0.806, blamed=first.blamed).bias[str(PREFILLS)][0] == pytest.approx(-0.07, abs=0.01)
    assert watched(0.2, blamed=first.blamed).blamed is None
    assert watched(3.0, blamed=-0.06).bias[str(PREFILLS)][0] == -0.06


def test_regret_begins_where_the_documents_say() -> None:
    """Seven points behind, on each request alike: that is beyond 0.05 and beyond any error."""
    behind = watched(0.806).bias[str(PREFILLS)][0]
    assert behind == pytest.approx(-0.07, abs=0.01)
    assert watched(0.76).bias == {}, "four points are not"
    assert watched(0.806, common=(0.0, 0.04)).bias == {}, "of the split before it no more is known than that"
    assert watched(0.806, common=(0.0, 0.02)).bias


def test_a_load_that_nobody_foresaw_is_no_fault_of_the_split() -> None:
    """The same 40 requests behind a backlog of 30 s: none could be in time, and none was."""
    slo, here = SLO(ttft_milliseconds=1000), PREFILLS
    setting = Setting(slo, here, Bounds())
    came = {n: Seen(n, 70.0 + n / 2, 1000, 1.0, output=1, ttft=25.0, tpot=None) for n in range(40)}
    model = StepModel(replace(ASSUMED, prefill=(0.0, 2e-4, 0.0), measured=True))
    load, o = replace(Load(), model=model, at=120.0, seen=came), Observation(core_id="c", at=120.0)
    watch = Watch(70.0, here, tuple(Job(69.0, 1.0, 1, 1) for _ in range(30)), ())
    judged = watch.judged(o, load, setting)
    assert judged is not None and judged[0] == pytest.approx(0.0, abs=0.05)
    state = predictive._held_against_reality(State(promised=here, watch=watch), here, o, load, setting)
    assert state.bias == {}
