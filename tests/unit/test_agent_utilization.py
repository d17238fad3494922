"""The utilization ratio: 1 / m* against the load that really is the edge, for any starting split, for a young pod."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
from tests.unit.agent_bench import Bench
from tests.unit.agent_bench import config as bench_config
from tests.unit.agent_plant import Run, Speed, poisson, simulate

from semipd_agent.contract import SLO, AgentConfig, Mode, PartitionConfig, Split
from semipd_agent.slo import utilization
from semipd_agent.slo.advance import advance
from semipd_agent.slo.evidence import tail
from semipd_agent.slo.load import MOST_KEPT, Load, Seen
from semipd_agent.slo.step_model import StepModel, StepProfile
from semipd_agent.slo.utilization import measure
from semipd_engine import contract as engine
from semipd_engine.contract import Observation

pytestmark = pytest.mark.unit

FAST = Speed(prompt_token=5e-5, step=0.006, row=0.0003)
PROMPTS = SLO(ttft_milliseconds=2000, tpot_milliseconds=60)
ANSWERS = SLO(ttft_milliseconds=500, tpot_milliseconds=15)


# ---- behind the whole controller, in simulation ----------------------------------------------------------------------


def under(rate: float, prompt: float, output: float, slo: SLO, seconds: int = 120) -> Run:
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


@pytest.mark.parametrize("lengths", [(), ((100, 20),) * 30])
def test_what_is_not_remembered_was_no_idle_time(lengths: tuple[tuple[int, int], ...]) -> None:
    """40 requests a second: those of 50 s are remembered, and the rate is that of all."""
    seen = {n: Seen(n, 150 + n / 40, 100, 1.0) for n in range(MOST_KEPT)}
    counts = dict.fromkeys(range(40), 200)
    load = replace(Load(), at=200.0, seen=seen, lengths=lengths, counts=counts)
    o = Observation(core_id="c", at=200.0, prefill_chunk_tokens=512)
    ratio, _ = measure(o, load, PROMPTS, [engine.Split()])
    assert ratio == pytest.approx(measure(o, replace(load, since=150.0), PROMPTS, [engine.Split()])[0], rel=0.06)
    assert ratio > 0.1


def test_a_storm_of_more_than_are_remembered_does_not_shorten_the_window() -> None:
    """6,000 requests within ten seconds, and none in the two minutes before: 50 a second, and not 600."""
    came = [190 + n / 600 for n in range(6000)]
    load = Load(lengths=((100, 20),) * 30)
    for now in (79.0, *range(190, 201)):
        fresh = tuple(
            engine.Arrival(id=n, at=at, prompt_tokens=100) for n, at in enumerate(came) if now - 1 < at <= now
        )
        load = advance(load, Observation(core_id="c", at=float(now), arrivals=fresh))
    assert load.arrived(80.0, 200.0) == pytest.approx(6000, abs=2) and len(load.seen) == MOST_KEPT
    o = Observation(core_id="c", at=200.0, prefill_chunk_tokens=512)
    calm = replace(load, regime_since=-math.inf)
    ratio, _ = measure(o, calm, PROMPTS, [engine.Split()])
    even = {n: Seen(n, 80 + n / 50, 100, 1.0) for n in range(6000)}
    assert ratio == pytest.approx(
        measure(o, replace(calm, seen=even, since=80.0), PROMPTS, [engine.Split()])[0], rel=0.1
    )


def test_few_long_answers_are_played_until_the_batch_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of what the device can: played until it has long been in balance, the same load is as large."""
    monkeypatch.setattr(utilization, "PRECISION", 1.01)
    rng, at, seen = random.Random(1), 0.0, dict[int, Seen]()
    while (at := at + rng.expovariate(1.3)) < 120:
        seen[len(seen)] = Seen(len(seen), at, 300, 1.0, 2 + round(rng.expovariate(1 / 600)))
    model = StepModel(StepProfile(prefill=(5e-3, 7e-5, 1e-9), decode=(9e-3, 2e-4, 3e-8), measured=True))
    load = replace(Load(model=model), at=120.0, seen=seen, lengths=((300, 600),) * 30)
    o = Observation(core_id="c", at=120.0, prefill_chunk_tokens=512)
    slo, splits = SLO(ttft_milliseconds=1000, tpot_milliseconds=22), [engine.Split(), engine.Split(prefill=50)]
    ratio, _ = measure(o, load, slo, splits)
    monkeypatch.setattr(utilization, "PLAYED", 4000)
    truth, _ = measure(o, load, slo, splits)
    assert 0.2 < truth < 0.5 and ratio == pytest.approx(truth, rel=0.02)


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


def test_the_chance_of_misses_among_thousands_of_samples_is_a_number() -> None:
    assert tail(4, 10, 0.1) == pytest.approx(0.0128, abs=1e-4)
    assert tail(500, 5000, 0.1) == pytest.approx(0.5, abs=0.02)
    assert tail(2500, 5000, 0.1) < 1e-9


def test_a_young_pod_under_load_knows_as_well_as_an_old_one() -> None:
    """Nothing is taken from a time without load: what an idle step takes is in the step model."""
    run = under(3.0, 4000, 20, PROMPTS, seconds=60)
    old = under(3.0, 4000, 20, PROMPTS, seconds=150)
    assert settled(run, 30)[-1] == pytest.approx(fmean(settled(old)), rel=0.35)


def test_a_pod_that_had_nothing_to_do_knows_once_it_has() -> None:
    """Without work the ratio is 0, from which no multiple of the load can be guessed."""
    config = AgentConfig(slo=PROMPTS, partition=PartitionConfig(mode=Mode.AUTO))
    run = simulate(poisson(20.0, 60, 400, 20, 1, start=40), config, 100, FAST)
    assert run.fullness[35] == 0
    assert settled(run)[-1] == pytest.approx(fmean(settled(under(20.0, 400, 20, PROMPTS))), rel=0.35)


def test_the_split_in_force_does_not_change_the_ratio() -> None:
    """What another split would mend asks for no pod."""
    found = []
    for start in (Split(), Split(prefill_percent=30), Split(decode_percent=30)):
        partition = PartitionConfig(mode=Mode.AUTO, split=start)
        run = simulate(poisson(2, 90, 4000, 20, 1), AgentConfig(slo=PROMPTS, partition=partition), 90, FAST)
        found.append(fmean(settled(run, 60)))
    assert max(found) / min(found) < 1.3


def test_it_is_held_through_a_missed_poll_and_unknown_without_targets() -> None:
    bench = Bench(bench_config(mode=Mode.AUTO, slo=PROMPTS))
    for _ in range(15):
        bench.tick()
    assert bench.controller.pilot.utilization_ratio == 0.0
    bench.tick(answers=False)
    assert bench.controller.pilot.utilization_ratio == 0.0
    bench.controller.configure(bench_config(2, mode=Mode.AUTO))
    bench.tick()
    assert bench.controller.pilot.utilization_ratio is None
