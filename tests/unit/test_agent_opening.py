"""A pod's first move, by its profile alone, and what it may not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.agent_bench import Bench, config

from semipd_agent.contract import SLO, Bounds, Policy
from semipd_agent.slo.advance import advance
from semipd_agent.slo.evidence import Evidence
from semipd_agent.slo.future import Setting
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.load import Load
from semipd_agent.slo.opening import ROWS, opening
from semipd_agent.slo.predictive import ModelPredictive
from semipd_agent.slo.share_law import Curve
from semipd_agent.slo.step_model import ShareLaw, StepProfile
from semipd_engine.contract import Arrival, FinishedRequest, Observation, Split

pytestmark = pytest.mark.unit
PROFILE = StepProfile(
    prefill=(0.0, 1e-4, 0.0),
    decode=(0.010, 0.0, 0.0),
    law=ShareLaw.SPATIAL,
    decode_curve=Curve(0.0, 1.0),
    contention=1.0,
    measured=True,
    curves_measured=True,
)
"""A token takes 10 ms over decode's share of the device."""
GRID = Grid((10, 20, 30, 40, 50, 60, 80, 100))
COME = Observation(core_id="c", at=1.0, arrivals=(Arrival(id=0, at=0.5, prompt_tokens=1000),))


def setting(tpot: int | None, split: Split | None = None, bounds: Bounds | None = None) -> Setting:
    slo = SLO(ttft_milliseconds=1000, tpot_milliseconds=tpot)
    return Setting(slo, split or Split(), bounds or Bounds(), GRID, home=split or Split())


def load(profile: StepProfile = PROFILE) -> Load:
    return advance(Load.of(profile), COME)


@pytest.mark.parametrize(
    ("tpot", "to"), [(1000, "100/20"), (45, "100/40"), (36, "100/50"), (25, None), (5, None), (None, None)]
)
def test_prefill_gets_what_decode_can_spare_and_never_less_than_it_has(tpot: int | None, to: str | None) -> None:
    """0.85 of 45 ms are 38.25: decode needs 0.26 of the device, and 40 of 140 are 0.286."""
    found = opening(load(), setting(tpot))
    assert (str(found.to) if found else None) == to
    if found is not None and tpot is not None:
        assert 1000 * found.tpot <= 0.85 * tpot
        assert f"{ROWS} answers" in found.said


def test_it_keeps_to_the_bounds() -> None:
    found = opening(load(), setting(1000, bounds=Bounds(min_decode_percent=50)))
    assert found is not None and str(found.to) == "100/50"


def test_a_guess_opens_nothing_nor_does_who_has_nobody_to_serve() -> None:
    for guess in (replace(PROFILE, measured=False), replace(PROFILE, curves_measured=False)):
        assert opening(load(guess), setting(1000)) is None
    assert opening(Load.of(PROFILE), setting(1000)) is None


def test_the_policy_opens_once_from_the_configured_split_only() -> None:
    slo = setting(1000).slo
    for split, to in ((Split(), "100/20"), (Split(prefill=100, decode=60), None)):
        policy = ModelPredictive(slo, GRID, home=Split())
        first = policy.observe(Evidence.of(COME, (), load()), split, Bounds(), 1.0)
        assert (str(first.move.to) if first.move else None) == to
        assert first.move is None or first.move.message.startswith("before any evidence")
        again = policy.observe(Evidence.of(COME.model_copy(update={"at": 20.0}), (), load()), Split(), Bounds(), 20.0)
        assert again.move is None, "whoever goes back is not sent again"


def test_what_was_opened_is_not_taken_back_before_the_load_has_lasted() -> None:
    """Both splits serve one request a second well, so for the configured one there is no hurry."""
    slo = setting(1000).slo
    policy, seen, split = ModelPredictive(slo, GRID, home=Split()), Load.of(PROFILE), Split()
    moves: list[tuple[int, str]] = []
    finished: list[FinishedRequest] = []
    for second in range(1, 200):
        finished.append(served(second))
        come = Arrival(id=second, at=second - 0.5, prompt_tokens=1000)
        o = Observation(core_id="c", at=second, arrivals=(come,), finished=(finished[-1],))
        seen = advance(seen, o)
        move = policy.observe(Evidence.of(o, tuple(finished[-120:]), seen), split, Bounds(), second).move
        if move is not None:
            split = move.to
            moves.append((second, str(split)))
    assert moves[0] == (1, "100/20")
    assert all(second > 120 for second, _ in moves[1:]), moves


def served(second: int) -> FinishedRequest:
    return FinishedRequest(
        cursor=second,
        id=second,
        received_at=second - 0.5,
        finished_at=second - 0.1,
        prompt_tokens=1000,
        cached_tokens=0,
        output_tokens=9,
        ttft_seconds=0.2,
        tpot_seconds=0.02,
        finish_reason="stop",
    )


def test_a_policy_with_new_targets_opens_nothing_where_there_is_evidence() -> None:
    """An edit of the SLO makes another policy; what it would do "before any evidence" would throw hours of it away."""
    pilot = Bench(config()).controller.pilot
    for finished, opened in (((), False), ((served(1),), True)):
        pilot.take(COME.model_copy(update={"finished": finished}), Bounds())
        pilot.follow(Policy.MODEL_PREDICTIVE, setting(1000).slo, GRID, Split(), since=0.0, mixes=False)
        assert isinstance(pilot.policy, ModelPredictive) and pilot.policy.state.opened == opened
