"""`make bench-slo`: what is planned from a profile, what its figures say against the claims, and the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cpu.figures import UnusableError
from bench.cpu.schedule import Sample, Turn
from bench.slo import contenders, log, plan, report
from bench.slo.plan import AGAIN, ARMS, AUTO, KNEE, ONE, PREDICTED, QUICK, SHIFT, STILL, WHOLE, Effort, Plan
from bench.slo.prediction import ChangedError, seal
from bench.slo.run import figures_of, load, minutes, most
from bench.slo.steps import POINTS, Held, held, model_of, quantiles, spread
from bench.slo.verdicts import MODEL, TRIES, Run, in_a_row, outcome
from bench.traffic import Record, Target
from semipd_engine.contract import Phase, ProfileKey, Split, StepProfileFile, StepTimes
from semipd_engine.profiler.sweep import Limits, points

pytestmark = pytest.mark.unit

EFFORT = Effort(requests=20, trials=4, rounds=2, still_seconds=10, phase_seconds=5, alone=2, held_out=8)
KNEES = {"100/100": 2.0, "100/30": 1.8, "40/100": 1.5}
PLAN = Plan(
    number=1,
    commit="abc",
    machine="here",
    at="2026-01-02T00:00:00+00:00",
    effort=EFFORT,
    profile="p",
    alone={"ttft_ms": 200.0, "tpot_ms": 20.0},
    ttft_ms=1000,
    tpot_ms=60,
    knees=KNEES,
    rates={"still": 1.8, "conv": 1.0, "code": 1.0},
)
KEY = ProfileKey(architecture="llama", weight_bytes=1, device="cpu", dtype="bfloat16", kernels="avx2", cpus=2)


def times(phase: Phase, size: int, steps: int, alone: float, shared: float = 0.0, context: int = 0) -> StepTimes:
    """Seconds are those of all steps."""
    return StepTimes(
        phase=phase,
        split=Split(prefill=50, decode=50),
        batch=size,
        context=context,
        steps=steps,
        tokens=steps * size,
        context_tokens=0,
        alone_seconds=alone,
        shared_seconds=shared,
    )


def profile(slower: float = 1.0) -> StepProfileFile:
    """Prefill 1 ms a token, decode 10 ms a step and one a row; beside the other phase twice that."""
    work = {Phase.PREFILL: lambda tokens: 1e-3 * tokens, Phase.DECODE: lambda rows: 1e-2 + 1e-3 * rows}
    found = []
    for phase, sizes in ((Phase.PREFILL, (16, 32, 64, 128, 256)), (Phase.DECODE, (1, 2, 4, 8, 16))):
        for size in sizes:
            seconds = 50 * slower * work[phase](size)
            found.append(times(phase, size, 50, seconds))
            found.append(times(phase, size, 50, 0.0, 2 * seconds, context=1))
    return StepProfileFile(key=KEY, model="m", machine="here", measured_at="now", seconds=60, steps=tuple(found))


def trial(split: str, number: int, rate: float, good: bool) -> Sample:
    figures = {"rate": rate, "met_percent": 95.0 if good else 50.0, "late_p99_ms": 1.0}
    return Sample(Turn(MODEL, KNEE, number, f"{rate:g}/s", split), figures)


def knee(split: str, good: float, bad: float) -> list[Sample]:
    return [trial(split, 0, good, True), trial(split, 1, bad, False)]


def arm(stage: str, name: str, met: float, number: int = 0, late: float = 1.0) -> Sample:
    """Of a hundred requests."""
    figures = {"requests": 100.0, "met": met, "met_percent": met, "late_p99_ms": late}
    if name == AUTO:
        figures |= {"moves": 2.0, "profile_measured": 1.0}
    return Sample(Turn(MODEL, stage, number, stage, name), figures)


def arms(stage: str, met: dict[str, float], rounds: int = 1) -> list[Sample]:
    return [arm(stage, name, met.get(name, 90.0), number) for name in ARMS for number in range(rounds)]


def run(samples: Sequence[Sample] = (), errors: Sequence[float] = (0.01,) * 20) -> Run:
    found = [Held("p", "decode", 10, 10.0, 10.0 * (1 + error)) for error in errors]
    return Run(PLAN, "digest", found, samples)


def whole(still: float = 89.0, shift: float = 95.0, again: float = 91.0) -> Run:
    """A run in which every claim holds, but for what is asked."""
    knees = [sample for split in PREDICTED for sample in knee(split, 0.98 * KNEES[split], 1.03 * KNEES[split])]
    loads = arms(STILL, {AUTO: still, AGAIN: again}, 2) + arms(SHIFT, {AUTO: shift, AGAIN: again})
    return run([*knees, *loads])


def holds(found: Run) -> list[bool | None]:
    return [verdict.holds for verdict in found.verdicts()]


# ---- the plan --------------------------------------------------------------------------------------------------------


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


# ---- held-out steps --------------------------------------------------------------------------------------------------


def test_no_held_out_size_was_measured_by_the_profile() -> None:
    swept = points(Limits(2048, 64, 256, 46_000), [Split(prefill=x, decode=y) for x in (100, 40) for y in (100, 40)])
    assert not {(p.rows, p.context, p.prompt) for p in POINTS} & {(p.rows, p.context, p.prompt) for p in swept}
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


# ---- verdicts --------------------------------------------------------------------------------------------------------


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


# ---- what is left ----------------------------------------------------------------------------------------------------


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


# ---- files -----------------------------------------------------------------------------------------------------------


def test_runs_are_numbered_and_none_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert log.number(log.read(path)) == 1
    log.append(path, begun := log.Entry(1, log.BEGUN, "d1", "c", "t"))
    assert log.number(log.read(path)) == 1, "it goes on"
    log.append(path, replace(begun, event=log.GIVEN_UP))
    log.append(path, replace(begun, number=2, digest="d2"))
    log.append(path, replace(begun, number=2, digest="d2", event=log.ENDED, outcome="holds"))
    assert log.number(log.read(path)) == 3
    assert [(entry.number, entry.event) for entry in log.last(log.read(path))] == [(1, log.GIVEN_UP), (2, log.ENDED)]


def test_holding_runs_are_counted_from_the_last_and_a_void_one_counts_neither_way() -> None:
    assert in_a_row(["holds", "falls short", "holds", "void", "holds"]) == 2
    assert in_a_row(["holds", log.GIVEN_UP]) == 0


def test_a_plan_that_was_changed_and_samples_of_another_are_told(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{}")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    sealed = seal(tmp_path / "prediction.json", replace(PLAN, profile=digest).as_json())
    samples = [replace(arm(STILL, AUTO, 90.0), key=key) for key in (sealed, "another")]
    from bench.cpu.schedule import append

    for sample in samples:
        append(sample, tmp_path / "samples.jsonl")
    assert load(tmp_path).samples == samples[:1]
    (tmp_path / "profile.json").write_text("{ }")
    with pytest.raises(ChangedError, match="not the profile"):
        load(tmp_path)
    (tmp_path / "prediction.json").write_text("{}")
    with pytest.raises(ChangedError, match="was changed"):
        load(tmp_path)


def test_whoever_has_the_published_plan_finds_its_digest(tmp_path: Path) -> None:
    digest = seal(tmp_path / "prediction.json", PLAN.as_json())
    report.write([], [replace(whole(), digest=digest)], tmp_path)
    (told,) = json.loads((tmp_path / "slo.json").read_text())["runs"]
    assert told["sha256"] == hashlib.sha256((json.dumps(told["plan"], indent=1) + "\n").encode()).hexdigest() == digest


def test_a_full_run_is_to_take_25_minutes_at_most() -> None:
    assert minutes(plan.FULL) <= 25


def test_the_page_has_every_run(tmp_path: Path) -> None:
    second = replace(whole(still=80.0), plan=replace(PLAN, number=2))
    entries = [
        log.Entry(1, log.ENDED, "d" * 64, "abc", "t", outcome(whole())),
        log.Entry(2, log.ENDED, "e" * 64, "abc", "t", outcome(second)),
        log.Entry(3, log.BEGUN, "f" * 64, "abc", "t"),
    ]
    report.write(entries, [whole(), second], tmp_path)
    page = (tmp_path / "slo.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 3 |"))]
    assert [row.split(" | ")[4] for row in rows] == ["holds", "falls short", log.BEGUN]
    assert "+5.0 points" in rows[0] or "+4.5 points" in rows[0]
    assert page.count("**falls short**") == 1
    assert [one["outcome"] for one in json.loads((tmp_path / "slo.json").read_text())["runs"]] == [
        "holds",
        "falls short",
    ]
    assert (tmp_path / "slo.svg").stat().st_size > 1000


# ---- contenders and records ------------------------------------------------------------------------------------------


def test_the_doubled_arm_is_the_same_split_and_auto_brings_the_profile(tmp_path: Path) -> None:
    assert contenders.split(AGAIN) == contenders.split(WHOLE) == Split()
    assert contenders.split("40/100") == Split(prefill=40, decode=100)
    assert contenders.split(AUTO) is contenders.split(ONE) is None
    profile_file = tmp_path / "given.json"
    profile_file.write_text("{}")
    place = contenders.Place(tmp_path / "model", 1, tmp_path / "place", Target(1000, 60))
    server = contenders.server(AUTO, profile_file)
    content = server.files(place)
    assert content["cache/semipd/profiles/profile.json"] == "{}"
    assert server.variables(place)["XDG_CACHE_HOME"] == str(tmp_path / "place" / "cache")
    assert contenders.server(ONE, profile_file).name == "unified"


def test_autos_moves_are_those_that_nobody_told_it(tmp_path: Path) -> None:
    assert contenders.auto_says(tmp_path) == (0, "")
    decisions = [{"reason": "ManualChange"}, {"reason": "ModelPrediction"}]
    status = {"partition": {"decisions": decisions}, "slo": {"stepTimes": "measured"}}
    (tmp_path / contenders.STATUS).write_text(json.dumps({"status": status}))
    assert contenders.auto_says(tmp_path) == (1, "measured")


def test_a_request_that_failed_has_met_nothing() -> None:
    good = Record(0, "1 conv", 0.0, 0.01, (0.5, 0.55), finish_reason="length", status=200)
    bad = replace(good, index=1, label="2 code", finish_reason=None, error="gone")
    found = figures_of([good, bad], Target(1000, 60))
    assert (found["met_percent"], found["met_percent 1 conv"], found["met_percent 2 code"]) == (50, 100, 0)
    assert (found["failed"], found["late_p99_ms"]) == (1, pytest.approx(10))
    with pytest.raises(UnusableError):
        figures_of([], Target(1000, 60))
