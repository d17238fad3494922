"""ModelPredictive: its step model, its replay against known queues, its decisions, and how still it keeps."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from tests.unit.agent_plant import Run, Speed, poisson, simulate

from semipd_agent.contract import SLO, AgentConfig, Bounds, DecisionReason, Mode, PartitionConfig, Split
from semipd_agent.slo import predictive
from semipd_agent.slo.future import Constants, Future, Played, Setting, candidates, mixed_choices, score
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.hindsight import LEAST_SECONDS, Watch
from semipd_agent.slo.load import Load, Seen, advance
from semipd_agent.slo.predictive import Decision, Hold, ModelPredictive, State, decide
from semipd_agent.slo.replay import Job, Live, Machine, replay
from semipd_agent.slo.step_model import ASSUMED, Kind, ShareLaw, StepModel
from semipd_cli.simulator.engine import Size, VirtualEngine
from semipd_cli.simulator.oracle import ORACLES
from semipd_cli.simulator.policies import Auto
from semipd_cli.simulator.workloads import Lengths, stream
from semipd_engine import contract as engine
from semipd_engine.contract import Arrival, Observation, Phase, StepTimes

pytestmark = pytest.mark.unit
ALONE = Machine(step=0.01, row=0.0, position=0.0, prefill_speed=0.5, decode_speed=0.5, max_rows=64, kv_tokens=0)
FAST = Speed(prompt_token=5e-5, step=0.006, row=0.0003)
PREFILLS = engine.Split(prefill=100, decode=40)
SETTING = Setting(SLO(ttft_milliseconds=1000), engine.Split(), Bounds())


# ---- step model -----------------------------------------------------------------------------------------------------


def steps(phase: Phase, batch: int, count: int, seconds: float, *, shared: float = 0.0) -> StepTimes:
    return StepTimes(
        phase=phase,
        split=engine.Split(prefill=100, decode=100),
        batch=batch,
        context=0,
        steps=count,
        tokens=count * batch,
        context_tokens=0,
        alone_seconds=seconds * (1 - shared),
        shared_seconds=seconds * shared,
    )


def test_the_model_learns_scale_and_shape_from_sums() -> None:
    """True steps take 40 ms and 3 ms a row, of which the assumed profile knows nothing."""
    model, before = StepModel(ASSUMED), {}
    for second in range(1, 60):
        after = {}
        for batch in (1, 4, 16):
            count = second * (3 if batch == 4 else 2)
            after[Phase.DECODE, 100, 100, batch, 0, 0] = steps(
                Phase.DECODE, batch, count, count * (0.04 + 0.003 * batch)
            )
        model = model.learn(before, after, 1.0)
        before = after
    fixed, row, _ = model.costs(Phase.DECODE)
    for batch in (1, 8, 16):
        assert fixed + row * batch == pytest.approx(0.04 + 0.003 * batch, rel=0.05)
    scale = model.costs(Phase.PREFILL)[1] / ASSUMED.prefill[1]
    assert 5 < scale < 30, "nothing was seen of prefill: slower than assumed as decode is, by 7 and 30 times"


@pytest.mark.parametrize("count", [1, 3])
def test_an_assumed_profile_takes_its_scale_from_the_first_steps(count: int) -> None:
    """A guess that is twenty times too fast is no better for being the only one."""
    prompt = {(Phase.PREFILL, 100, 100, 128, 0, 0): steps(Phase.PREFILL, 128, count, count * 0.158)}
    fixed, token, _ = StepModel(ASSUMED).learn({}, prompt, 1.0).costs(Phase.PREFILL)
    assert fixed + 128 * token == pytest.approx(0.158, rel=0.1)


def test_a_phase_that_rests_forgets_nothing() -> None:
    one = {(Phase.DECODE, 100, 100, 1, 0, 0): steps(Phase.DECODE, 1, 20, 0.8)}
    model = StepModel(ASSUMED).learn({}, one, 1.0)
    assert model.learn(one, one, 36_000.0).costs(Phase.DECODE) == model.costs(Phase.DECODE)


@pytest.mark.parametrize("seconds", [90, 1800])
@pytest.mark.parametrize("contention", [1.0, 1.5])
def test_an_error_of_contention_does_not_feed_on_itself(contention: float, seconds: int) -> None:
    """A few steps alone, and then only shared ones under 100/20: costs and contention stay apart, for half an hour."""
    model, before, alone, shared = StepModel(ASSUMED), {}, 0, 0
    true = 0.03 + 0.001 * 128
    for second in range(1, seconds):
        alone, shared = alone + (second <= 5), shared + 5 * (second > 5)
        after = {
            (Phase.PREFILL, 100, 100, 128, 0, 0): steps(Phase.PREFILL, 128, alone, alone * true),
            (Phase.PREFILL, 100, 20, 128, 1, 0): steps(
                Phase.PREFILL, 128, shared, shared * true * contention / (100 / 120), shared=1.0
            ).model_copy(update={"split": engine.Split(prefill=100, decode=20)}),
        }
        model, before = model.learn(before, after, 1.0), after
    costs = model.costs(Phase.PREFILL)
    assert costs[0] + 128 * costs[1] == pytest.approx(true, rel=0.03)
    assert model.contention(Phase.PREFILL) == pytest.approx(contention, rel=0.03)


@pytest.mark.parametrize("alone", [(32, 64), (32, 64, 512), (32, 512, 2048)])
def test_contention_is_no_error_of_the_shape(alone: tuple[int, ...]) -> None:
    """Those alone are of other sizes than those beside, and the assumed fixed part is ten times too small."""
    model, before = StepModel(ASSUMED), {}
    for second in range(1, 120):
        after = {
            (Phase.PREFILL, 100, 100, size, 0, 0): steps(Phase.PREFILL, size, second, second * (0.02 + 5e-5 * size))
            for size in alone
        } | {
            (Phase.PREFILL, 100, 100, size, 1, 0): steps(
                Phase.PREFILL, size, second, second * (0.02 + 5e-5 * size) * 1.2 * 2, shared=1.0
            )
            for size in (512, 2048)
        }
        model, before = model.learn(before, after, 1.0), after
    fixed, token, _ = model.costs(Phase.PREFILL)
    assert model.contention(Phase.PREFILL) == pytest.approx(1.2, rel=0.05)
    assert fixed + 2048 * token == pytest.approx(0.02 + 5e-5 * 2048, rel=0.05)


def test_one_odd_step_alone_decides_nothing() -> None:
    odd = {(Phase.DECODE, 100, 100, 1, 0, 0): steps(Phase.DECODE, 1, 1, 0.002)}
    both = odd | {(Phase.DECODE, 100, 100, 1, 1, 0): steps(Phase.DECODE, 1, 1000, 1000 * 0.0084 * 1.1 * 2, shared=1.0)}
    model = StepModel(ASSUMED).learn({}, odd, 1.0).learn(odd, both, 60.0)
    assert model.contention(Phase.DECODE) == pytest.approx(ASSUMED.contention, rel=0.1)
    assert sum(model.costs(Phase.DECODE)[:2]) == pytest.approx(0.0084, rel=0.1)


def test_what_ran_alone_long_ago_does_not_hold_against_what_runs_now() -> None:
    """The device becomes three times slower while every step is shared: after some hours the costs say so."""
    model, before, count, shared = StepModel(ASSUMED), {}, 0, 0.0
    true, contention = 0.03 + 0.001 * 128, 1.2
    for minute in range(1, 300):
        count += 300
        shared += 300 * true * contention * (3.0 if minute > 60 else 1.0)
        after = {
            (Phase.PREFILL, 100, 100, 128, 0, 0): steps(Phase.PREFILL, 128, 100, 100 * true),
            (Phase.PREFILL, 100, 1, 128, 1, 0): steps(Phase.PREFILL, 128, count, shared, shared=1.0).model_copy(
                update={"split": engine.Split(prefill=100, decode=1)}
            ),
        }
        model, before = model.learn(before, after, 60.0), after
    costs = model.costs(Phase.PREFILL)
    found = (costs[0] + 128 * costs[1]) / model.speed(Phase.PREFILL, engine.Split(prefill=100, decode=1))
    assert found == pytest.approx(3 * true * contention, rel=0.03)
    # Nobody can tell contention by then, so it is the profile's again, and the costs are what that leaves.
    assert model.contention(Phase.PREFILL) == pytest.approx(ASSUMED.contention, rel=0.01)
    assert costs[0] + 128 * costs[1] == pytest.approx(3 * true * contention / ASSUMED.contention, rel=0.03)


def mixed_seconds(parts: tuple[float, ...], seconds: int, contention: float = 1.4) -> StepModel:
    """Each second five steps of each of these sorts: the part of the time (0-1) that they run alone."""
    model, before = StepModel(ASSUMED), {}
    true = 0.03 + 0.001 * 128
    for second in range(1, seconds):
        after, n = {}, 5 * second
        for k, part in enumerate(parts):
            took = true / (part + (1 - part) / (2 * contention))  # alone and beside, until the work is done
            after[Phase.PREFILL, 100, 100, 128, k, 0] = steps(Phase.PREFILL, 128, n, n * took, shared=1 - part)
        model, before = model.learn(before, after, 1.0), after
    return model


@pytest.mark.parametrize("parts", [(0.9, 0.3), (0.45, 0.1), (0.45, 0.2)])
def test_contention_is_learned_where_all_intervals_are_mixed(parts: tuple[float, ...]) -> None:
    """Within a minute, from a profile that says 1.1."""
    model = mixed_seconds(parts, 60)
    assert model.contention(Phase.PREFILL) == pytest.approx(1.4, rel=0.02)
    fixed, token, _ = model.costs(Phase.PREFILL)
    assert fixed + 128 * token == pytest.approx(0.03 + 0.001 * 128, rel=0.02)


def test_where_all_intervals_are_alike_contention_is_the_profiles() -> None:
    assert mixed_seconds((0.4, 0.4), 60).contention(Phase.PREFILL) == ASSUMED.contention


def test_shared_steps_are_remembered_while_a_phase_runs_alone() -> None:
    """Ten minutes alone after a minute beside: contention is what it was."""
    model = mixed_seconds((1.0, 0.0), 60)
    known = model.contention(Phase.PREFILL)
    before: dict[object, StepTimes] = {}
    for second in range(1, 600):
        n = 20 * second
        after = {(Phase.PREFILL, 100, 100, 128, 0, 0): steps(Phase.PREFILL, 128, n, n * (0.03 + 0.001 * 128))}
        model, before = model.learn(before, after, 1.0), after
    assert known == pytest.approx(1.4, rel=0.02)
    assert model.contention(Phase.PREFILL) == pytest.approx(known, rel=0.01)


def test_a_long_silence_does_not_bring_a_measured_profile_back() -> None:
    """A step an hour after thousands: what they said still stands."""
    model = StepModel(replace(ASSUMED, measured=True))
    many = {(Phase.DECODE, 100, 100, 1, 0, 0): steps(Phase.DECODE, 1, 5000, 5000 * 2 * sum(ASSUMED.decode[:2]))}
    model = model.learn({}, many, 60.0)
    one = {(Phase.DECODE, 100, 100, 1, 0, 0): steps(Phase.DECODE, 1, 5001, 5001 * 2 * sum(ASSUMED.decode[:2]))}
    later = model.learn(many, one, 3600.0)
    assert later.costs(Phase.DECODE)[0] == pytest.approx(model.costs(Phase.DECODE)[0], rel=0.05)
    assert model.costs(Phase.DECODE)[0] == pytest.approx(2 * ASSUMED.decode[0], rel=0.1)


def test_a_measured_profile_is_corrected_within_bounds_only() -> None:
    model, before = StepModel(replace(ASSUMED, measured=True)), {}
    for second in range(1, 30):
        count = 10 * second
        after = {(Phase.DECODE, 100, 100, 1, 0, 0): steps(Phase.DECODE, 1, count, count * 100 * ASSUMED.decode[0])}
        model, before = model.learn(before, after, 1.0), after
    assert model.costs(Phase.DECODE)[0] <= 9.01 * ASSUMED.decode[0]


def test_contention_is_what_the_share_does_not_explain() -> None:
    """Half a device makes a step take twice as long; here it takes three times."""
    model, before = StepModel(ASSUMED), {}
    for second in range(1, 60):
        n = 20 * second
        after = {
            (Phase.DECODE, 100, 100, 1, 0, 0): steps(Phase.DECODE, 1, n, n * 0.01),
            (Phase.DECODE, 100, 99, 1, 0, 0): steps(Phase.DECODE, 1, n, n * 0.03, shared=1.0),
        }
        model, before = model.learn(before, after, 1.0), after
    assert 1.0 / model.speed(Phase.DECODE, engine.Split()) == pytest.approx(3.0, rel=0.15)
    assert model.costs(Phase.DECODE)[0] == pytest.approx(0.01, rel=0.25)


def test_a_smaller_share_is_never_faster_under_either_law() -> None:
    for law in ShareLaw:
        model = StepModel(replace(ASSUMED, law=law))
        prefill = [model.speed(Phase.PREFILL, engine.Split(prefill=x, decode=100)) for x in range(10, 101, 10)]
        decode = [model.speed(Phase.DECODE, engine.Split(prefill=100, decode=y)) for y in range(10, 101, 10)]
        assert prefill == sorted(prefill) and decode == sorted(decode)


# ---- replay ---------------------------------------------------------------------------------------------------------


def test_replay_of_prompts_alone_is_a_queue_with_constant_service() -> None:
    """M/D/1 (Kleinrock): the mean wait is rho / (2 mu (1 - rho)); the replay comes within 5 %."""
    rng, at, jobs = random.Random(4), 0.0, []
    for _ in range(60_000):
        at += rng.expovariate(0.7)
        jobs.append(Job(at, 1.0, 1, 1))
    waits = [outcome.ttft - 1.0 for outcome in replay(ALONE, jobs)]
    assert sum(waits) / len(waits) == pytest.approx(0.7 / (2 * 0.3), rel=0.05)


def test_replay_of_a_batch_alone_steps_with_its_rows() -> None:
    machine = replace(ALONE, step=0.01, row=0.001)
    live = [Live(0.0, 1, 11, 0), Live(0.0, 1, 21, 0)]
    first, second = replay(machine, [], live)
    assert first.tpot == pytest.approx(0.012)
    assert second.tpot == pytest.approx((10 * 0.012 + 10 * 0.011) / 20)


def test_replay_slows_both_while_both_are_busy_and_neither_alone() -> None:
    """A prompt of one second at half speed beside a row: two seconds; the row gets half its steps meanwhile."""
    prompt, row = replay(ALONE, [Job(0.0, 1.0, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert prompt.ttft == pytest.approx(2.0)
    assert row.tpot * 200 == pytest.approx(2.0 + 100 * 0.01)


def test_replay_holds_prompts_back_for_places_and_room() -> None:
    jobs = [Job(0.0, 0.1, 100, 101), Job(0.0, 0.1, 100, 2)]
    free = replay(ALONE, jobs)[1].ttft
    for machine in (replace(ALONE, max_rows=1), replace(ALONE, kv_tokens=150)):
        assert replay(machine, jobs)[1].ttft > free + 0.5


def test_replay_without_isolation_steps_rows_with_each_chunk() -> None:
    """A prompt of one second in chunks of 0.1 s beside a row: ten steps of 0.1 s + 1 ms, in each of which the row gets
    a token, and 10 ms + 1 ms for each of the others."""
    machine = replace(ALONE, row=0.001, chunk=0.1, chunk_tokens=10**6, prefill_speed=1.0, decode_speed=1.0)
    prompt, row = replay(machine, [Job(0.0, 1.0, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert prompt.ttft == pytest.approx(10 * 0.101)
    assert row.tpot * 200 == pytest.approx(10 * 0.101 + 190 * 0.011)
    slower, _ = replay(replace(machine, mixed=1.5), [Job(0.0, 1.0, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert slower.ttft == pytest.approx(1.5 * 10 * 0.101)
    short, _ = replay(machine, [Job(0.0, 0.005, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert short.ttft == pytest.approx(0.011), "a prompt that hides behind the weights takes one step"


def test_prompts_that_wait_share_a_step_without_isolation() -> None:
    machine = replace(ALONE, chunk=0.1, chunk_tokens=10**6, prefill_speed=1.0, decode_speed=1.0)
    jobs = [Job(0.0, 0.004, 1, 1)] * 50
    last = replay(machine, jobs, [Live(0.0, 1, 2001, 0)])[49]
    assert last.ttft < 0.3, "one after the other in steps of their own they would take half a second"


def test_a_prompt_that_is_cached_whole_takes_no_time_without_isolation() -> None:
    """Beside a row: there is nothing to compute, and nothing to divide by."""
    machine = replace(ALONE, chunk=0.1, chunk_tokens=100, prefill_speed=1.0, decode_speed=1.0)
    cached, after, row = replay(machine, [Job(0.5, 0.0, 1, 1), Job(1.0, 0.1, 1, 1)], [Live(0.0, 1, 201, 0)])
    assert cached.ttft == 0 and 0 < after.ttft < 0.5 and row.tpot > 0


# ---- decisions ------------------------------------------------------------------------------------------------------


def auto(targets: SLO, start: Split | None = None, bounds: Bounds | None = None) -> AgentConfig:
    partition = PartitionConfig(mode=Mode.AUTO, split=start or Split(), bounds=bounds or Bounds())
    return AgentConfig(slo=targets, partition=partition)


def test_decide_is_pure_and_names_why_it_holds() -> None:
    observation = Observation(core_id="c", at=100.0)
    setting = Setting(SLO(ttft_milliseconds=500), engine.Split(), Bounds())
    state = State()
    assert decide(observation, Load(), state, setting) == (Hold("Idle"), state)
    few = replace(Load(), seen={0: Seen(0, 99.0, 10, 1.0)})
    assert decide(observation, few, state, setting)[0] == Hold("InsufficientTraffic")


def test_no_isolation_is_a_choice_where_it_is_allowed_and_nothing_is_limited() -> None:
    o = Observation(core_id="c", at=1.0, prefill_chunk_tokens=100)
    allowed = replace(SETTING, mixes=True)
    assert [s.mixed_tokens for s in mixed_choices(o, allowed)] == [100, 50], "a quarter of it would be too few"
    assert mixed_choices(o, SETTING) == []
    assert mixed_choices(o, replace(allowed, bounds=Bounds(max_decode_percent=90))) == []


def test_what_mixed_steps_take_is_learned_and_says_nothing_of_the_phases() -> None:
    """Steps that decode alone, and for a minute mixed ones that take 1.6 times the best that the model says."""
    decode = {(Phase.DECODE, 100, 100, 8, 0, 0): steps(Phase.DECODE, 8, 1000, 1000 * (0.02 + 8 * 0.001))}
    model = StepModel(ASSUMED).learn({}, decode, 1.0)
    costs, said, before = model.costs(Phase.DECODE), model.mixed_seconds(256, 0, 8, 0), {}
    for second in range(1, 60):
        n = 20 * second
        mixed = steps(Phase.DECODE, 264, n, 1.6 * said * n).model_copy(
            update={"batch": 8, "prompts": 256, "prompt_tokens": 256 * n}
        )
        after = {(Phase.DECODE, 100, 100, 8, 0, 256): mixed}
        model, before = model.learn(before, after, 1.0), after
    assert model.costs(Phase.DECODE) == costs
    assert model.mixed_factor == pytest.approx(1.6, rel=0.02)


def mixed_steps(n: int, seconds: float) -> dict[Kind, StepTimes]:
    whole = steps(Phase.DECODE, 264, n, seconds)
    return {
        (Phase.DECODE, 100, 100, 8, 0, 256): whole.model_copy(
            update={"batch": 8, "prompts": 256, "prompt_tokens": 256 * n}
        )
    }


def test_a_mixed_step_that_was_stopped_does_not_forbid_mixing_for_ever() -> None:
    """One of 30 s among some that are as the profile says. Once there are none any more, what is known fades."""
    plain = {(Phase.DECODE, 100, 100, 8, 0, 0): steps(Phase.DECODE, 8, 1000, 1000 * (0.02 + 8 * 0.001))}
    model = StepModel(ASSUMED).learn({}, plain, 1.0)
    best = ASSUMED.mixed * model.mixed_seconds(256, 0, 8, 0)
    model = model.learn({}, mixed_steps(20, 20 * best), 1.0)
    model = model.learn(mixed_steps(20, 20 * best), mixed_steps(21, 20 * best + 30.0), 1.0)
    odd = model.mixed_factor
    assert ASSUMED.mixed < odd < 1.3
    for hour in range(1, 4):
        more = steps(Phase.DECODE, 8, 1000 + hour, (1000 + hour) * (0.02 + 8 * 0.001))
        before, plain = plain, {(Phase.DECODE, 100, 100, 8, 0, 0): more}
        model = model.learn(before, plain, 3600.0)
    assert model.mixed_factor == pytest.approx(ASSUMED.mixed, rel=0.01) and model.mixed_factor < odd
    assert model.learn(plain, plain, 36_000.0).mixed == model.mixed, "a pod that rests forgets nothing"


@pytest.mark.parametrize("mixing", [1.0, 3.0])
def test_auto_mixes_where_that_is_faster_and_comes_back_where_it_is_not(mixing: float) -> None:
    """Long prompts beside short answers. Mixed steps at their best leave every split behind; where they take three
    times as long, that is seen, and the policy comes back."""
    slo = SLO.model_construct(ttft_milliseconds=1000, tpot_milliseconds=40, percentile=90, window_seconds=60)
    auto = Auto(slo, "cpu", mixes=True)
    arrivals = stream(2.6, 150, Lengths(2000, 60), 3)
    virtual = VirtualEngine(arrivals, replace(ORACLES["other-cpu"], mixing=mixing), Size(), 3, engine.Split())
    split, seen, cursor = engine.Split(), [], 0
    for second in range(1, 150):
        virtual.run_until(float(second))
        o = virtual.observe(cursor)
        cursor = o.next_cursor
        if (to := auto.tick(o, split)) is not None:
            split = to
            virtual.switch(split)
        seen.append(split)
    assert any(s.mixed_tokens for s in seen), "it looked best"
    assert bool(seen[-1].mixed_tokens) == (mixing == 1.0)


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(min_prefill_percent=40, max_decode_percent=60)])
def test_candidates_keep_to_bounds_and_rungs_and_hold_the_unlimited_split(bounds: Bounds) -> None:
    for grid in (Grid(), Grid((10, 20, 40, 60, 80, 100))):
        found = candidates(Setting(SLO(ttft_milliseconds=1), engine.Split(), bounds, grid))
        for split in found:
            assert bounds.min_prefill_percent <= split.prefill <= bounds.max_prefill_percent
            assert bounds.min_decode_percent <= split.decode <= bounds.max_decode_percent
            assert not grid.rungs or {split.prefill, split.decode} <= set(grid.rungs)
        assert any((s.prefill, s.decode) == (bounds.max_prefill_percent, bounds.max_decode_percent) for s in found)
        shares = [(round(200 * s.prefill / max(100, s.prefill + s.decode)), s.prefill + s.decode > 100) for s in found]
        assert len(set(shares)) == len(found), "no choice twice"


def pressed(state: State, *, at: float) -> tuple[object, State]:
    """A young regime of nine seconds in which decode has far more than it needs: a plain emergency."""
    arrivals = tuple(Arrival(id=n, at=at - 9.0 + 0.3 * n, prompt_tokens=1500) for n in range(30))
    waiting = tuple(engine.QueuedRequest(id=n, received_at=at - 0.5, uncached_tokens=1500) for n in range(25, 30))
    o = Observation(core_id="c", at=at, arrivals=arrivals, queue=waiting, prefill_chunk_tokens=512, max_num_seqs=64)
    model = StepModel(replace(ASSUMED, prefill=(0.0, 1e-4, 0.0), decode=(0.01, 0.0, 0.0), measured=True))
    load = replace(advance(Load(model=model), o), lengths=((1500, 100),) * 30, regime_since=90.0)
    setting = Setting(
        SLO(ttft_milliseconds=2000, tpot_milliseconds=200), engine.Split(prefill=20, decode=100), Bounds()
    )
    return decide(o, load, state, setting)


def test_an_emergency_has_a_second_look() -> None:
    first, state = pressed(State(), at=100.0)
    assert isinstance(first, Hold) and first.reason == "Confirming"
    second, _ = pressed(state, at=102.0)
    assert isinstance(second, Decision) and second.reason == "Emergency", "in a regime too young for anything else"
    assert second.to.prefill / (second.to.prefill + second.to.decode) > 0.4


def test_an_emergency_asks_for_better_evidence_with_each_move() -> None:
    """A gain of three errors is enough at first; after ten moves under one load it is taken for chance."""
    ready = State(regime=90.0, intent="gain prefill", confirmed=1)
    assert isinstance(pressed(ready, at=100.0)[0], Decision)
    after, _ = pressed(replace(ready, moves=10), at=100.0)
    assert isinstance(after, Hold) and after.reason == "TooLittleGain"


def test_a_queue_that_is_there_is_no_matter_of_chance() -> None:
    """What those gain that wait already is sure, and the error of what may come is none of theirs."""
    future = Future(Observation(core_id="c", at=0.0), Load(), SETTING, (), 2, (), (0, 0, 1, 2), turns=9)
    better = Played((0.9, 0.8, 0.0, 1.0), (), (), 0, (0.5,)), Played((0.5, 0.6, 1.0, 0.0), (), (), 0, (0.5,))
    assert future.of_those_here(*better) == pytest.approx(0.3)
    assert future.error(*better) > 0.3


def test_a_second_look_must_find_the_same_intent() -> None:
    """To give a split back, or to leave it for the other phase, is another thing than what was about to be done."""
    _, state = pressed(State(), at=100.0)
    assert state.intent == "gain prefill"
    for other in ("give back prefill", "gain decode"):
        choice, after = pressed(replace(state, intent=other), at=102.0)
        assert isinstance(choice, Hold) and choice.reason == "Confirming"
        assert (after.intent, after.confirmed) == ("gain prefill", 1)


def test_a_future_that_repeats_itself_is_no_surer_for_it() -> None:
    """Nine seconds of arrivals played seven times say as much as nine seconds do."""
    played = Played((1.0, 0.0, 1.0, 0.0), (), (), 0, (0.5,)), Played((0.0, 0.0, 1.0, 1.0), (), (), 0, (0.5,))
    future = Future(Observation(core_id="c", at=0.0), Load(), SETTING, (), 0, (), (0, 1, 2, 3))
    assert replace(future, turns=4).error(*played) == pytest.approx(2 * future.error(*played))


@pytest.mark.parametrize("targets", [(1.0, 0.05), (math.inf, 0.05), (1.0, math.inf)])
def test_scores_are_those_of_the_formula_to_the_last_bit(targets: tuple[float, float]) -> None:
    rng, c = random.Random(3), Constants()
    ttft, tpot = ([rng.lognormvariate(0, 2) * scale for _ in range(400)] for scale in (1.0, 0.05))
    tpot[7], ttft[8] = 0.0, 1.0
    got = score(ttft, tpot, *targets, c)
    for a, b, one in zip(ttft, tpot, got.scores, strict=True):
        ratio = max(a / targets[0], b / targets[1])
        soft = 1.0 / (1.0 + ratio**c.softness) if ratio < 4 else 0.0
        lost = c.tail / math.log(c.hopeless) * math.log(min(ratio, c.hopeless)) if ratio > 1 else 0.0
        assert one == soft - lost
    assert got.met == sum(a <= targets[0] and b <= targets[1] for a, b in zip(ttft, tpot, strict=True))


def test_a_turn_that_was_cut_counts_for_its_part() -> None:
    """450 requests of half a minute, played until there are 500."""
    load = replace(Load(), seen={n: Seen(n, 70.0 + n / 15, 100, 1.0, output=10, ttft=0.1) for n in range(450)})
    future = Future.of(Observation(core_id="c", at=100.0), load, SETTING)
    assert len(future.jobs) == 500
    assert future.turns == pytest.approx(500 / 450)


def test_a_gain_under_one_of_the_possible_loads_only_is_not_sure() -> None:
    future = Future(Observation(core_id="c", at=0.0), Load(), SETTING, (), 0, (), (0, 1, 2, 3))
    even = Played((0.5,) * 4, (), (), 0, (0.5, 0.5, 0.5))
    sure, unsure = replace(even, means=(0.6, 0.6, 0.6)), replace(even, means=(0.6, 0.9, 0.3))
    assert future.error(sure, even) == pytest.approx(0.0)
    assert future.error(unsure, even) > 0.2


def prompts(seed: int, start: Split | None = None, seconds: int = 240) -> Run:
    return simulate(
        poisson(3.25, seconds, 2000, 60, seed),
        auto(SLO(ttft_milliseconds=750, tpot_milliseconds=30), start),
        seconds,
        FAST,
    )


def test_it_finds_the_better_split_promises_and_comes_to_rest() -> None:
    """2,000-token prompts at 3.25/s: prefill needs most of the device, wherever the split starts."""
    for start in (Split(), Split(prefill_percent=30)):
        run = prompts(1, start)
        assert run.share(120) >= 0.65
        assert run.moves(120) <= 1
        moved = run.controller.log.newest_first()[-1]
        assert moved.reason is DecisionReason.BETTER_SPLIT_PREDICTED
        assert moved.predicted is not None and moved.predicted.attainment_percent > 50
        assert "expected within both targets" in moved.message
    still = simulate(
        poisson(3.25, 240, 2000, 60, 1), AgentConfig(slo=SLO(ttft_milliseconds=750, tpot_milliseconds=30)), 240, FAST
    )
    assert run.attainment(SLO(ttft_milliseconds=750, tpot_milliseconds=30), 60) > still.attainment(
        SLO(ttft_milliseconds=750, tpot_milliseconds=30), 60
    )


def test_a_pod_that_is_bound_by_places_in_the_batch_is_recognised() -> None:
    """Four places and long answers: TTFT fails, and no split makes room. Prefill is not starved of decode for it."""
    targets = SLO(ttft_milliseconds=1000, tpot_milliseconds=100)
    run = simulate(poisson(2.0, 120, 300, 400, 1), auto(targets), 120, FAST, Size(max_num_seqs=4))
    verdict = run.controller.pilot.verdict
    assert (verdict.feasible, verdict.feasible_reason) == (False, "KVBound")
    assert run.share(119) <= 0.5


def test_a_target_below_the_service_time_is_named() -> None:
    targets = SLO(ttft_milliseconds=20, tpot_milliseconds=100)
    run = simulate(poisson(1.0, 90, 2000, 60, 1), auto(targets), 90, FAST)
    assert (run.controller.pilot.verdict.feasible, run.controller.pilot.verdict.feasible_reason) == (
        False,
        "TargetBelowServiceTime",
    )


def test_a_controller_that_meets_a_running_engine_has_a_future_to_play() -> None:
    """It knows the arrivals of the minute before it, although none came lately and nobody waits."""
    arrivals = tuple(Arrival(id=n, at=40.0 + n, prompt_tokens=100) for n in range(30))
    done = [
        engine.FinishedRequest(
            cursor=n,
            id=n,
            received_at=40.0 + n,
            finished_at=80.0,
            prompt_tokens=100,
            cached_tokens=0,
            output_tokens=20,
            ttft_seconds=0.2,
            tpot_seconds=0.02,
            finish_reason="length",
        )
        for n in range(29)
    ]
    last = engine.RunningRequest(
        id=29,
        received_at=69.0,
        prompt_tokens=100,
        uncomputed_tokens=0,
        output_tokens=5,
        max_tokens=400,
        first_token_at=70.0,
        last_token_at=90.0,
    )
    o = Observation(core_id="c", at=90.0, arrivals=arrivals, finished=tuple(done), running=(last,))
    setting = Setting(SLO(ttft_milliseconds=500, tpot_milliseconds=50), engine.Split(), Bounds())
    choice, _ = decide(o, advance(Load(), o), State(), setting)
    assert isinstance(choice, Hold) and choice.here is not None and choice.here.ttft > 0


def test_equal_observations_give_equal_decisions() -> None:
    """Nothing but its arguments is in a decision: no clock, no chance."""
    first, second = prompts(3, seconds=60), prompts(3, seconds=60)
    assert [d.model_dump() for d in first.controller.log.newest_first()] == [
        d.model_dump() for d in second.controller.log.newest_first()
    ]


def watched(realised: float, *, common: float | None = 0.0) -> State:
    """Two prompts of 0.2 s each second under 100/40, none beside decode; all of them took `realised` seconds. As early
    as a stretch is judged."""
    slo, here, now = SLO(ttft_milliseconds=1000), PREFILLS, 70.0 + LEAST_SECONDS
    setting = Setting(slo, here, Bounds())
    count = int(2 * LEAST_SECONDS)
    came = {n: Seen(n, 70.0 + n / 2, 1000, 1.0, output=1, ttft=realised, tpot=None) for n in range(count)}
    model = StepModel(replace(ASSUMED, prefill=(0.0, 2e-4, 0.0), measured=True))
    load, o = replace(Load(), model=model, at=now, seen=came), Observation(core_id="c", at=now)
    state = State(moved_at=69.0, promised=here, common=common, watch=Watch(70.0, here, (), ()))
    return predictive._held_against_reality(state, here, o, load, setting)


def test_a_split_that_stays_behind_the_model_is_regretted() -> None:
    assert watched(3.0).bias[str(PREFILLS)][0] == -Constants().most_bias
    assert watched(0.2).bias == {}, "it gave what it should"
    assert watched(3.0, common=None).bias == {}, "nobody knows what another would have given"
    assert watched(3.0, common=-1.05).bias == {}, "the split before it stayed as far behind: no fault of this one"


def test_regret_begins_where_the_documents_say() -> None:
    """Seven points behind, on each request alike: that is beyond 0.05 and beyond any error."""
    behind = watched(0.806).bias[str(PREFILLS)][0]
    assert behind == pytest.approx(-0.07, abs=0.01)
    assert watched(0.76).bias == {}, "four points are not"


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


def test_without_an_observation_it_says_so() -> None:
    from semipd_agent.slo.window import Evidence

    verdict = ModelPredictive(SLO(ttft_milliseconds=500)).observe(Evidence(), engine.Split(), Bounds(), 1.0)
    assert (verdict.move, verdict.feasible_reason) == (None, "NoObservation")
