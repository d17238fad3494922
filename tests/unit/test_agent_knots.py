"""Where steps are no line: what a profile measured of it, and how well sizes in between are said."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from pydantic import TypeAdapter
from tests.unit.step_profile_bench import Virtual, measured

from bench.slo.prediction import oracle_of
from bench.slo.steps import POINTS, Held, held, quantiles
from bench.slo.verdicts import MEDIAN, P95
from semipd_agent.slo.knots import Knots, Steps, bent, rising
from semipd_agent.slo.load import Load
from semipd_agent.slo.profiles import learned
from semipd_agent.slo.recording import _plain
from semipd_agent.slo.replay import Job, Live, Machine, replay
from semipd_agent.slo.step_model import ShareLaw, StepModel, StepProfile
from semipd_cli.simulator.oracle import Oracle
from semipd_engine.contract import Observation, Phase, Split, StepProfileFile
from semipd_engine.core.observation import StepSize
from semipd_engine.cpu_plan import held as held_parts
from semipd_engine.profiler.sweep import SPLITS, WHOLE, Point, sweep

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Bent(Oracle):
    """A small model on two cores, after what one was seen to do: a batch of six rows takes little more than one, and
    from there each row is work; attention is dear; decode alone on one core does more than half of what it does on
    two, for it waits for memory; and cores are whole ones where the split is near to them."""

    def work(self, phase: Phase, size: StepSize, rng: random.Random) -> float:
        tokens, context = size.tokens, size.context
        if phase is Phase.PREFILL:
            return self._jittered(0.008 + 1.6e-3 * tokens + 7e-7 * context, rng)
        products = 0.0135 + 8e-4 * (tokens - 1) if tokens <= 6 else 0.022 + 2.2e-3 * (tokens - 6)
        return self._jittered(products + 3e-6 * context, rng)

    def speed(self, phase: Phase, split: Split) -> float:
        part = held_parts(split, 2)[phase is Phase.DECODE]
        slower = 1.08 if phase is Phase.PREFILL else 1.03
        return (part if phase is Phase.PREFILL else part**0.75) / slower


ORACLE = Bent((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), jitter=0.04)


@pytest.fixture(scope="module")
def of_bent() -> StepProfileFile:
    return measured(ORACLE)


@pytest.fixture(scope="module")
def unseen() -> list[tuple[str, Virtual]]:
    """Each point that the profile has not, played by an engine of its own."""
    played = []
    for point in POINTS:
        engine = Virtual(ORACLE)
        sweep(engine, [point], lambda _: None)
        played.append((str(point), engine))
    return played


def errors(profile: StepProfile, played: Sequence[tuple[str, Virtual]]) -> list[Held]:
    model = StepModel(profile)
    return [one for name, engine in played for one in held(model, name, [], engine.steps())]


def test_sizes_and_splits_in_between_are_said_within_the_bounds(
    of_bent: StepProfileFile, unseen: list[tuple[str, Virtual]]
) -> None:
    median, p95 = quantiles(errors(learned(of_bent, ShareLaw.PACED), unseen))
    assert median < MEDIAN and p95 < P95, (median, p95)


@pytest.mark.parametrize("without", ["decode_bend", "speeds"])
def test_without_what_was_measured_they_are_not(
    without: str, of_bent: StepProfileFile, unseen: list[tuple[str, Virtual]]
) -> None:
    profile = learned(of_bent, ShareLaw.PACED)
    if without == "speeds":
        profile = replace(profile, cpus=0, prefill_speeds=Knots(), decode_speeds=Knots())
    else:
        profile = replace(profile, decode_bend=Knots())
    median, p95 = quantiles(errors(profile, unseen))
    assert median > MEDIAN or p95 > P95, (median, p95)


def test_a_file_that_sums_each_kind_over_all_points_is_read_and_no_worse_than_a_line(
    of_bent: StepProfileFile, unseen: list[tuple[str, Virtual]]
) -> None:
    """As they were written before, of fewer batches."""
    engine = Virtual(ORACLE)
    old = [Point(WHOLE, rows, context, 24, 0, 0) for rows in (1, 4, 16, 64) for context in (16, 512) if rows < 64]
    old += [Point(WHOLE, 0, 0, 0, 4, prompt) for prompt in (16, 64, 256, 1024)]
    old += [Point(Split(prefill=x, decode=y), 8, 128, 96, 8, 256) for x, y in SPLITS]
    sweep(engine, old, lambda _: None)
    content = of_bent.model_copy(update={"steps": tuple(engine.steps())}).model_dump_json()
    profile = learned(StepProfileFile.model_validate_json(content), ShareLaw.PACED)
    line = replace(profile, decode_bend=Knots(), prefill_bend=Knots(), cpus=0, decode_speeds=Knots())
    assert quantiles(errors(profile, unseen))[1] < quantiles(errors(line, unseen))[1]


# ---- the fits --------------------------------------------------------------------------------------------------------


def test_knots_are_lines_between_their_points_and_level_beyond() -> None:
    found = Knots((1.0, 3.0, 7.0), (2.0, 4.0, 0.0))
    assert [found(x) for x in (0, 1, 2, 3, 6, 7, 99)] == [2, 2, 3, 4, 1, 0, 0]
    for x in (0.5, 1.0, 2.5, 6.9, 8.0):
        assert sum(map(float.__mul__, found.weights(x), found.values)) == pytest.approx(found(x))
    assert Knots()(5.0) == 1.0


def test_a_bend_and_the_context_are_told_apart() -> None:
    """Context is little of each step, and its prior three times too small."""
    truth = Knots((1.0, 6.0, 16.0), (1.4, 0.8, 1.0))
    seen = list[Steps]()
    for size in (1.0, 6.0, 16.0):
        for context in (0.01, 0.04):
            base = 1 - context
            seen.append(Steps(1000, size, base, context, base * truth(size) + 3 * context))
    found, context = bent(seen)
    assert found.at == truth.at
    assert found.values == pytest.approx(truth.values, rel=0.05) and 1.5 < context < 3.5


def test_one_odd_step_bends_little() -> None:
    found, _ = bent([Steps(100, 4.0, 1.0, 0.0, 1.0), Steps(1, 8.0, 1.0, 0.0, 3.0)])
    assert found(8.0) == pytest.approx(1.2, rel=0.05) and found(4.0) == pytest.approx(1.0, rel=0.02)


def test_a_larger_part_is_never_slower() -> None:
    found = rising([(0.2, 0.25, 1.0), (0.4, 0.5, 3.0), (0.5, 0.4, 1.0), (0.5, 0.5, 1.0), (0.8, 0.9, 1.0)])
    assert found.at == (0.0, 0.2, 0.4, 0.5, 0.8, 1.0)
    assert found.values == pytest.approx((0.0, 0.25, 0.48, 0.48, 0.9, 1.0))
    once = rising([(0.3, 0.4, 1.0), (0.5, 0.2, 1.0), (0.5, 0.8, 3.0)])
    assert once.values == pytest.approx((0.0, 0.4, 0.65, 1.0)), "one odd step is a part of its place's mean"


@pytest.mark.parametrize(
    ("prefill", "decode", "cpus", "parts"),
    [(100, 70, 2, (0.5, 0.5)), (100, 50, 2, (2 / 3, 1 / 3)), (100, 100, 1, (0.5, 0.5)), (75, 25, 8, (0.75, 0.25))],
)
def test_a_split_near_to_whole_cores_is_whole_cores(
    prefill: int, decode: int, cpus: int, parts: tuple[float, float]
) -> None:
    assert held_parts(Split(prefill=prefill, decode=decode), cpus) == pytest.approx(parts)


# ---- who reads it ----------------------------------------------------------------------------------------------------


def test_a_replay_takes_each_batch_at_its_own_time() -> None:
    """Four streams: a step of 4 rows takes no longer than one of a single row."""
    bend = Knots((1.0, 4.0), (1.0, 0.25))
    machine = Machine(0.0, 0.01, 0.0, 1.0, 1.0, 8, 0, bend=bend)
    outcomes = replay(machine, [], [Live(0.0, 1, 101, 0)] * 4)
    assert [one.tpot for one in outcomes] == pytest.approx([0.01] * 4)


def test_a_load_takes_prompts_and_batches_by_the_bends(of_bent: StepProfileFile) -> None:
    load = Load.of(learned(of_bent, ShareLaw.PACED))
    rng = random.Random(0)
    chunk = StepSize(1, 256, 256 * 128)
    assert load.work(256, 256) == pytest.approx(ORACLE.work(Phase.PREFILL, chunk, rng), rel=0.15)
    machine = load.machine(Split(prefill=100, decode=70), Observation(core_id="c", at=0.0, prefill_chunk_tokens=256))
    assert machine.decode_speed == pytest.approx(ORACLE.speed(Phase.DECODE, Split()), rel=0.1)
    (row,) = replay(machine, [], [Live(0.0, 1, 201, 0)])
    assert row.tpot == pytest.approx(0.0135, rel=0.15)
    (*_, row) = replay(machine, [Job(0.0, 0.0, 0, 201)] * 6)
    assert row.tpot == pytest.approx(0.0175, rel=0.15)


def test_the_prediction_of_a_run_plays_the_same_steps(of_bent: StepProfileFile) -> None:
    oracle, rng = oracle_of(of_bent), random.Random(0)
    model = StepModel(learned(of_bent, ShareLaw.PACED))
    size = StepSize(6, 6, 600)
    c0, c1, c2 = model.costs(Phase.DECODE, 6)
    assert oracle.work(Phase.DECODE, size, rng) == c0 + 6 * c1 + 600 * c2
    assert oracle.speed(Phase.PREFILL, Split(prefill=60)) == model.speed(Phase.PREFILL, Split(prefill=60))
    both = StepSize(7, 70, 900, prompt_tokens=64, prompt_context=800)
    assert oracle.mixed(both, rng) == model.mixed_seconds(64, 800, 6, 100)


def test_a_recording_brings_the_tables_back(of_bent: StepProfileFile) -> None:
    load = Load.of(learned(of_bent, ShareLaw.PACED))
    assert TypeAdapter(Load).validate_python(json.loads(json.dumps(_plain(load)))).model.profile == load.model.profile
