"""The step model: what it learns of the machine from sums of steps, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semipd_agent.slo.step_model import ASSUMED, Kind, ShareLaw, StepModel
from semipd_engine import contract as engine
from semipd_engine.contract import Phase, StepTimes

pytestmark = pytest.mark.unit


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


def slowed(splits: tuple[engine.Split, ...], slope: float, contention: float = 1.25) -> StepModel:
    """Decode steps, half of them alone, under each of these splits for 40 s on a device with this slope."""
    model, before, second = StepModel(replace(ASSUMED, law=ShareLaw.SPATIAL)), dict[Kind, StepTimes](), 0
    for k, split in enumerate(splits):
        share = split.decode / max(100, split.prefill + split.decode)
        slower = contention * (1 - slope + slope / share)
        for count in range(1, 41):
            second += 1
            after = dict(before)
            after[Phase.DECODE, 100, 100, 8, 0, 0] = steps(Phase.DECODE, 8, 10 * second, 0.3 * second)
            after[Phase.DECODE, split.prefill, split.decode, 8, 1 + k, 0] = steps(
                Phase.DECODE, 8, 10 * count, 0.3 * count * slower, shared=1.0
            ).model_copy(update={"split": split})
            model, before = model.learn(before, after, 1.0), after
    return model


@pytest.mark.parametrize("slope", [0.05, 0.22, 0.5])
def test_what_a_small_share_costs_is_learned_from_two_others(slope: float) -> None:
    """The profile says 0.15. Nothing was seen of 100/10."""
    model = slowed((engine.Split(), engine.Split(prefill=100, decode=20)), slope)
    true = 1.25 * (1 - slope + slope * 11)
    assert 1 / model.speed(Phase.DECODE, engine.Split(prefill=100, decode=10)) == pytest.approx(true, rel=0.12)
    assert model.laws_known == 1, "of prefill nothing was seen"


def test_under_one_share_the_law_stays_the_profiles() -> None:
    model = slowed((engine.Split(prefill=100, decode=20),), 0.4)
    assert model.decode_shares.curve is None and model.laws_known == 0
    assert model.decode_shares.under[17].shared < 200, "what is kept is bounded"


def test_a_kind_that_core_forgot_and_began_anew_is_learned_from() -> None:
    """Between two ticks: the difference is negative, and what was learned of a share was nonsense then."""
    model, split = slowed((engine.Split(),), 0.4), engine.Split(prefill=100, decode=20)
    kind = (Phase.DECODE, 100, 20, 8, 9, 0)

    def sums(count: int, seconds: float, shared: float) -> dict[Kind, StepTimes]:
        return {kind: steps(Phase.DECODE, 8, count, seconds, shared=shared).model_copy(update={"split": split})}

    before = sums(100, 300.0, 0.4)
    model = model.learn({}, before, 1.0)
    for after in (sums(3, 9.0, 1.0), sums(6, 18.0, 1.0), sums(9, 27.0, 1.0)):
        model, before = model.learn(before, after, 1.0), after
    assert model.decode_shares.under[17].shared == pytest.approx(27.0)
    assert model.decode_shares.under[17].steps == pytest.approx(9)
    assert model.laws_known == 1


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
