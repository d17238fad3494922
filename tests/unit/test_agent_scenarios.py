"""The whole controller against a queueing plant in virtual time: turns of the load, constant load, floods, idleness."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.agent_plant import Job, Run, Speed, poisson, simulate, trace

from semipd_agent.contract import SLO, AgentConfig, Bounds, DecisionReason, Mode, PartitionConfig, Policy

pytestmark = pytest.mark.unit

FAST = Speed(prompt_token=5e-5, step=0.006, row=0.0003)
"""Of the order of an 8B model on a large GPU; the mean conversation prompt takes 58 ms."""
SLOW = Speed(prompt_token=1e-3, step=0.02, row=0.004)
"""Of the order of a small model on two cores; lengths are an eighth there."""


def slo(speed: Speed, shorter: int = 1) -> SLO:
    """7.5 times the latencies of a single mean conversation request."""
    return SLO(ttft_milliseconds=int(7500 * speed.ttft(1155 / shorter)), tpot_milliseconds=int(7500 * speed.tpot()))


def auto(targets: SLO, bounds: Bounds | None = None, policy: Policy = Policy.MODEL_PREDICTIVE) -> AgentConfig:
    return AgentConfig(slo=targets, partition=PartitionConfig(mode=Mode.AUTO, policy=policy, bounds=bounds or Bounds()))


def reasons(run: Run) -> list[DecisionReason]:
    return [d.reason for d in reversed(run.controller.log.newest_first())]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("speed", "shorter", "rate"), [(FAST, 1, 2.0), (SLOW, 8, 1.1)], ids=["fast", "slow"])
def test_constant_load_is_left_alone(speed: Speed, shorter: int, rate: float, seed: int) -> None:
    """At about 70 % of what the split can carry: it finds its place in the first minute and stays."""
    run = simulate(poisson(rate, 300, 1155 / shorter, 211 / shorter, seed), auto(slo(speed, shorter)), 300, speed)
    assert len(run.engine.done) > 200
    assert run.attainment(slo(speed, shorter)) > 0.9
    assert run.moves() <= 2 and run.moves(60) <= 1


def test_constant_load_that_needs_another_split_settles() -> None:
    """Decode takes so long at an even split that only TPOT fails; after the first minutes nothing moves any more."""
    targets = SLO(ttft_milliseconds=4000, tpot_milliseconds=13)
    run = simulate(poisson(2.5, 400, 2000, 60, 0), auto(targets), 400, FAST)
    assert run.share(399) < 0.5
    assert run.moves(200, 400) <= 1
    still = simulate(poisson(2.5, 400, 2000, 60, 0), AgentConfig(slo=targets), 400, FAST)
    assert run.attainment(targets, 100) > still.attainment(targets, 100)


def test_only_ttft_failing_raises_prefill_and_says_so() -> None:
    run = simulate(poisson(7.5, 60, 2048, 28, 3), auto(slo(FAST), policy=Policy.ALGORITHM1), 60, FAST)
    assert run.share(59) > 0.5
    assert set(reasons(run)) == {DecisionReason.TTFT_ABOVE_TARGET}
    first = run.controller.log.newest_first()[-1]
    assert first.metric == "ttft"
    assert first.observed_milliseconds is not None and first.target_milliseconds is not None
    assert first.observed_milliseconds > first.target_milliseconds
    assert first.from_split.prefill_percent == 100 and first.to != first.from_split


def test_only_tpot_failing_lowers_prefill() -> None:
    targets = SLO(ttft_milliseconds=4000, tpot_milliseconds=13)
    run = simulate(poisson(2.5, 120, 2000, 60, 3), auto(targets, policy=Policy.ALGORITHM1), 120, FAST)
    assert run.share(119) < 0.5
    assert set(reasons(run)) == {DecisionReason.TPOT_ABOVE_TARGET}


def turns(seconds: int, rate: float, skip: float) -> Iterator[Job]:
    """Conversation, code, conversation, from the Azure traces at one time scale."""
    yield from trace("conv", seconds, rate, 0, skip)
    yield from trace("code", seconds, rate, seconds, skip)
    yield from trace("conv", seconds + 100, rate, 2 * seconds, skip + seconds * rate)


@pytest.mark.parametrize(("skip", "seconds"), [(300, 120)])
def test_prefill_follows_the_turns_of_the_azure_traces(skip: float, seconds: int) -> None:
    """The share rises within 20 s of the turn to code and falls after the turn back."""
    config = auto(slo(FAST), policy=Policy.ALGORITHM1)
    run = simulate(turns(seconds, 0.55, skip), config, 3 * seconds + 100, FAST)
    before, peak = run.share(seconds - 1), run.share(2 * seconds - 1)
    assert max(run.share(s) for s in range(seconds, seconds + 20)) > before
    assert peak > before
    assert min(run.share(s) for s in range(2 * seconds, 3 * seconds + 100)) < peak


@pytest.mark.parametrize("policy", [Policy.ALGORITHM1, Policy.MODEL_PREDICTIVE])
def test_a_flood_of_long_prompts_is_answered_in_seconds(policy: Policy) -> None:
    steady = list(poisson(1.5, 100, 1155, 211, 7))
    flood = [Job(60.0 + 0.02 * i, 6000, 20) for i in range(40)]
    run = simulate([*steady, *flood], auto(slo(FAST), policy=policy), 80, FAST)
    assert run.moves(0, 60) <= 1
    assert max(run.share(s) for s in range(60, 72)) > 0.55


def test_an_idle_pod_moves_nothing() -> None:
    jobs = [*poisson(2, 60, 1155, 211, 1), *poisson(2, 30, 1155, 211, 2, start=360)]
    run = simulate(jobs, auto(slo(FAST)), 390, FAST)
    assert run.moves(100, 360) == 0


def test_overload_is_reported_and_not_answered_with_a_dance() -> None:
    """Twice what the device can do: both SLOs fail, no split helps, and in the end the batch is full."""
    run = simulate(poisson(14, 60, 1155, 211, 1), auto(SLO(ttft_milliseconds=433, tpot_milliseconds=12)), 60, FAST)
    assert run.controller.pilot.verdict.feasible is False
    assert run.controller.pilot.verdict.feasible_reason in {"Overloaded", "TTFTBound", "TPOTBound", "KVBound"}
    assert run.moves() <= 3


def test_bounds_hold_under_load() -> None:
    bounds = Bounds(min_decode_percent=60)
    run = simulate(poisson(7.5, 60, 2048, 28, 3), auto(slo(FAST), bounds, Policy.ALGORITHM1), 60, FAST)
    assert run.splits[-1].decode == 60
    assert all(split.decode >= 60 for split in run.splits)
