"""The capacity ratio: as a function, over snapshots on a fake clock, and behind the whole controller in simulation."""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev

import pytest
from tests.unit.agent_plant import FakeClock, Plant, Run, Speed, poisson, simulate

from semipd_agent.contract import SLO, AgentConfig, Bounds, Mode, PartitionConfig
from semipd_agent.control import SplitController
from semipd_agent.partitioner.base import Grant
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.slo.capacity import MOST_BY_LATENCY, CapacityMeter, Load, splits_in_reach, utilization_ratio
from semipd_agent.slo.evidence import tail
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.policy import Metric
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import Arrival, EngineSnapshot, EngineState, FinishedRequest, Split

pytestmark = pytest.mark.unit

FAST = Speed(prompt_token=5e-5, step=0.006, row=0.0003)
PROMPTS = SLO(ttft_milliseconds=2000, tpot_milliseconds=60)
"""Prompts of 4,000 tokens and answers of 20: prefill carries about 3 a second within these targets."""
ANSWERS = SLO(ttft_milliseconds=500, tpot_milliseconds=15)
"""Prompts of 300 tokens and answers of 400: decode carries about 4 a second within these targets."""


@pytest.mark.parametrize("rho", [0.1, 0.4, 0.8])
def test_one_is_where_the_target_is_just_met(rho: float) -> None:
    assert utilization_ratio(Load(prefill=rho, decode=0, ttft_pressure=0.9)) < 1
    assert utilization_ratio(Load(prefill=0, decode=rho, tpot_pressure=0.9)) < 1
    if rho > 0.25:
        assert utilization_ratio(Load(prefill=rho, decode=0, ttft_pressure=1.0)) == pytest.approx(1)
        assert utilization_ratio(Load(prefill=rho, decode=0, ttft_pressure=1.1)) > 1


def test_it_is_linear_where_latency_is_not() -> None:
    """A queue with S = a tenth of the target: J = 0.1 / (1 - rho)."""
    found = [utilization_ratio(Load(prefill=rho, decode=0, ttft_pressure=0.1 / (1 - rho))) for rho in (0.2, 0.4, 0.8)]
    assert found == pytest.approx([0.2 / 0.9, 0.4 / 0.9, 0.8 / 0.9])


def test_latency_alone_asks_for_half_as_much_again_and_offered_load_for_what_it_is() -> None:
    assert utilization_ratio(Load(prefill=0.9, decode=0, ttft_pressure=80)) == MOST_BY_LATENCY
    assert utilization_ratio(Load(prefill=2.5, decode=0, ttft_pressure=80)) == 2.5


def test_a_target_that_no_replica_can_meet_asks_for_none() -> None:
    """Late although nearly idle: the service time itself is above the target."""
    assert utilization_ratio(Load(prefill=0.05, decode=0.05, ttft_pressure=5, tpot_pressure=5)) < 0.5


def still(metric: Metric, value: float, current: Split, to: Split) -> float:
    return value


def snapshot(now: float, **changes: object) -> EngineSnapshot:
    return EngineSnapshot.model_validate({"monotonic_time": now, "state": EngineState.READY} | changes)


def watch(slo: SLO, seconds: int, **each: object) -> tuple[CapacityMeter, float]:
    meter = CapacityMeter()
    for second in range(1, seconds + 1):
        meter.observe(snapshot(float(second), **each))
    return meter, float(seconds)


def judge(meter: CapacityMeter, now: float, evidence: Evidence, slo: SLO = PROMPTS) -> float | None:
    return meter.ratio(evidence, slo, Split(), (), still, now)


def done(at: float, ttft: float = 0.1) -> FinishedRequest:
    return FinishedRequest(
        cursor=int(at * 10),
        finished_at=at,
        prompt_tokens=100,
        cached_tokens=0,
        output_tokens=10,
        ttft_seconds=ttft,
        tpot_seconds=0.01,
        finish_reason="stop",
    )


def test_unknown_until_watched_for_ten_seconds_then_an_idle_pod_is_empty() -> None:
    meter, now = watch(PROMPTS, 5)
    assert judge(meter, now, Evidence()) is None
    meter, now = watch(PROMPTS, 12)
    assert judge(meter, now, Evidence()) == 0.0


def test_a_growing_queue_is_over_the_edge_however_good_the_finished_requests_look() -> None:
    """Four requests a second arrive and two are served, each with a TTFT of a twentieth of the target."""
    meter = CapacityMeter()
    for second in range(1, 61):
        meter.observe(snapshot(float(second), waiting=2 * second, prefilling=1, waiting_tokens=200 * second))
    arrivals = tuple(Arrival(at=n / 4, prompt_tokens=100) for n in range(4, 241))
    evidence = Evidence(tuple(done(n / 2) for n in range(2, 121)), arrivals, waiting=120, oldest_wait_seconds=0.5)
    ratio = judge(meter, 60.0, evidence)
    assert ratio is not None and ratio == pytest.approx(2.0, rel=0.05)


def test_a_backlog_keeps_the_pod_over_the_edge_until_it_is_worked_off() -> None:
    """Nothing arrives any more, but what waits is late already."""
    meter, now = watch(PROMPTS, 30, waiting=5, prefilling=1)
    ratio = judge(meter, now, Evidence(waiting=5, oldest_wait_seconds=20))
    assert ratio is not None and ratio > 1


def test_what_another_split_would_mend_needs_no_replica_for_a_minute() -> None:
    def better(metric: Metric, value: float, current: Split, to: Split) -> float:
        return value / 2

    meter = CapacityMeter()
    found: dict[int, float | None] = {}
    for second in range(1, 121):
        meter.observe(snapshot(float(second), prefilling=second % 2))
        evidence = Evidence(
            tuple(done(float(n), ttft=2.4) for n in range(max(1, second - 59), second + 1)),
            tuple(Arrival(at=n - 0.5, prompt_tokens=100) for n in range(max(1, second - 59), second + 1)),
        )
        reach = splits_in_reach(Bounds())
        found[second] = meter.ratio(evidence, PROMPTS, Split(), reach, better, float(second))
    assert (found[40] or 0) < 0.9
    assert (found[100] or 0) > 1


def test_splits_in_reach_are_within_the_bounds() -> None:
    bounds = Bounds(min_prefill_percent=40, max_prefill_percent=60, min_decode_percent=95)
    assert {split.prefill for split in splits_in_reach(bounds)} == {40, 50, 60}
    assert {split.decode for split in splits_in_reach(bounds)} == {95}
    on_rungs = splits_in_reach(bounds, Grid((10, 20, 40, 60, 80, 100)))
    assert {str(split) for split in on_rungs} == {"prefill=40 decode=100", "prefill=60 decode=100"}


# ---- behind the whole controller, in simulation ----------------------------------------------------------------------


def under(rate: float, prompt: float, output: float, slo: SLO, seconds: int = 200) -> Run:
    config = AgentConfig(slo=slo, partition=PartitionConfig(mode=Mode.AUTO))
    return simulate(poisson(rate, seconds, prompt, output, 1), config, seconds, FAST)


def settled(run: Run, start: int = 60) -> list[float]:
    return [ratio for ratio in run.fullness[start:] if ratio is not None]


@pytest.mark.parametrize(
    ("prompt", "output", "slo", "rates"),
    [(4000, 20, PROMPTS, (0.75, 1.5, 3.0)), (300, 400, ANSWERS, (1.0, 2.0, 4.0))],
    ids=["prompts", "answers"],
)
def test_the_ratio_grows_with_the_load_and_crosses_one_near_the_edge(
    prompt: float, output: float, slo: SLO, rates: tuple[float, float, float]
) -> None:
    """At the third rate the SLO is just met or just missed; the others are a half and a quarter of it."""
    runs = [under(rate, prompt, output, slo) for rate in rates]
    quarter, half, edge = (fmean(settled(run)) for run in runs)
    assert 0.7 < edge < 1.1
    assert quarter == pytest.approx(edge / 4, rel=0.45)
    assert half == pytest.approx(edge / 2, rel=0.35)
    assert all(pstdev(settled(run)) < 0.25 for run in runs)
    assert min(settled(under(2 * rates[2], prompt, output, slo))) > 1


def test_it_falls_towards_zero_once_the_load_is_gone() -> None:
    config = AgentConfig(slo=PROMPTS, partition=PartitionConfig(mode=Mode.AUTO))
    run = simulate(poisson(2.5, 120, 4000, 20, 1), config, 300, FAST)
    assert (run.fullness[119] or 0) > 0.5
    assert (run.fullness[299] or 0) < 0.05


@pytest.mark.parametrize("mode", [Mode.MANUAL, Mode.DISABLED])
def test_a_fixed_split_has_a_ratio_too(mode: Mode) -> None:
    config = AgentConfig(slo=PROMPTS, partition=PartitionConfig(mode=mode))
    run = simulate(poisson(6, 120, 4000, 20, 1), config, 120, FAST)
    assert fmean(settled(run)) > 1


def test_without_targets_or_an_answering_engine_it_is_unknown() -> None:
    clock = FakeClock(0.0)
    controller = SplitController(lambda mode: CpuPaced(Grant(cpus=(0, 1))), AgentConfig(), clock)
    plant = Plant(deque(poisson(2, 30, 4000, 20, 1)), FAST)
    for second in range(1, 31):
        plant.advance(float(second))
        clock.now = plant.now
        if second == 15:
            assert controller.utilization_ratio is None
            controller.configure(AgentConfig(generation=1, slo=PROMPTS))
        controller.observe(plant.snapshot(controller.window.cursor))
    assert controller.utilization_ratio is not None, "known at once: the load was watched before there were targets"
    controller.observe(None)
    assert controller.utilization_ratio is None


def test_the_chance_of_misses_among_thousands_of_samples_is_a_number() -> None:
    assert tail(4, 10, 0.1) == pytest.approx(0.0128, abs=1e-4)
    assert tail(500, 5000, 0.1) == pytest.approx(0.5, abs=0.02)
    assert tail(2500, 5000, 0.1) < 1e-9
