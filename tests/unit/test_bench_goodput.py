"""`make bench-goodput` without a server: the rate is found, a run that was cut off goes on, the best settings meet."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cpu import goodput
from bench.cpu.goodput import ARRIVALS, SIDES, UNLOADED, Ask, Found, asks, holds, judged, outcomes, plan, progress
from bench.cpu.goodput_run import main, markdown
from bench.cpu.schedule import Sample, Turn
from bench.traffic import Record, Target

pytestmark = pytest.mark.unit

MODEL, REQUESTS = "smollm2-135m", 40
SEEDS = range(3)


def capacity(name: str, arrivals: str, seed: int) -> float:
    """Of a server that holds its targets up to that rate: ours is 1.5 times as good, but for the trace of code."""
    best = {"vllm-256": 4.0, "ours 50/50": 6.0, "unified-256": 5.0}
    if arrivals == "azure-code":
        best |= {"ours 50/50": 4.0, "unified-256": 4.4}
    return best.get(name, 2.0) * (1 + 0.02 * seed)


def made(todo: Ask, found: Found) -> Sample:
    """What a run would add."""
    if todo.arrivals == UNLOADED:
        figures = {"ttft_ms": 125.0 if todo.contender == "vllm" else 150.0, "tpot_ms": 27.0}
        return Sample(todo.turn, figures)
    met = 100.0 if todo.rate <= capacity(todo.contender, todo.arrivals, todo.seed) else 50.0
    return Sample(todo.turn, {"rate": todo.rate, "met_percent": met} | found.limits)


def run(samples: Sequence[Sample] = (), most: int = 10_000, seeds: Sequence[int] = SEEDS) -> list[Sample]:
    """One trial after the other, each decided by all samples so far, as the command does."""
    every = list(samples)
    for _ in range(most):
        found = Found(every, MODEL, REQUESTS)
        todo = next(asks(found, ARRIVALS, seeds), None)
        if todo is None:
            break
        every.append(made(todo, found))
    return every


@pytest.mark.parametrize("real", [0.3, 1.9, 2.0, 2.1, 7.0, 40.0])
def test_the_greatest_good_rate_is_found(real: float) -> None:
    trials: dict[float, bool] = {}
    while (rate := goodput.next_rate(trials, 2.0)) is not None:
        trials[rate] = rate <= real
    assert real / goodput.CLOSE <= goodput.greatest(trials) <= real
    assert len(trials) <= 14


@pytest.mark.parametrize("always", [False, True])
def test_a_search_ends_where_no_rate_is_good_or_none_is_bad(always: bool) -> None:
    trials: dict[float, bool] = {}
    while (rate := goodput.next_rate(trials, 2.0)) is not None:
        trials[rate] = always
    assert len(trials) < 16
    assert goodput.greatest(trials) == (max(trials) if always else 0.0)


def test_the_target_is_the_best_peers_and_waits_for_all_of_them() -> None:
    samples = run(most=len(SIDES[goodput.LIKE_PEER]) - 1)
    assert Found(samples, MODEL, REQUESTS).target is None
    found = Found(run(samples, most=1), MODEL, REQUESTS)
    assert found.target == Target(ttft=625.0, tpot=67.5)


def test_settings_are_chosen_with_the_first_seed_and_the_best_are_asked_with_all() -> None:
    samples = run()
    found = Found(samples, MODEL, REQUESTS)
    assert {side: found.best(side, "poisson", 0) for side in SIDES} == {
        "peer": "vllm-256",
        "split": "ours 50/50",
        "one process": "unified-256",
    }
    later = {sample.turn.contender for sample in samples if sample.turn.round > 0}
    assert later == {"vllm-256", "ours 50/50", "unified-256"}
    done, total = progress(found, ARRIVALS, SEEDS)
    assert done == total == len(ARRIVALS) * (len([name for side in SIDES for name in SIDES[side]]) + 3 * 2)
    ratios = [outcome.ratio for outcome in outcomes(found, ARRIVALS, SEEDS)]
    assert [pytest.approx(ratio, rel=0.11) for ratio in (1.5, 1.5, 1.1)] == ratios
    assert holds(outcomes(found, ARRIVALS, SEEDS)) is True
    assert "| poisson | vllm-256: " in (page := markdown({MODEL: found}, ARRIVALS, SEEDS)) and "holds" in page


def test_a_run_that_was_cut_off_goes_on_with_the_trial_that_it_was_in() -> None:
    whole = run()
    assert run(run(most=25)) == whole
    assert run(whole) == whole


def test_trials_against_other_targets_or_of_other_sizes_are_made_again() -> None:
    samples = run(seeds=range(1))
    assert next(asks(Found(samples, MODEL, REQUESTS), ARRIVALS, range(1)), None) is None
    assert next(asks(Found(samples, MODEL, REQUESTS + 1), ARRIVALS, range(1)), None) is not None
    quicker = [replace(s, figures={**s.figures, "tpot_ms": 20.0}) if s.turn.part == UNLOADED else s for s in samples]
    assert next(asks(Found(quicker, MODEL, REQUESTS), ARRIVALS, range(1)), None) is not None


def test_a_trial_that_was_lost_is_no_good_one() -> None:
    samples = run(most=len(SIDES[goodput.LIKE_PEER]))
    found = Found(samples, MODEL, REQUESTS)
    todo = next(asks(found, ARRIVALS, SEEDS))
    lost = Sample(todo.turn, {"rate": todo.rate} | found.limits, error="ServerFailedError: gone")
    again = Found([*samples, lost], MODEL, REQUESTS)
    assert again.trials(todo.contender, todo.arrivals, todo.seed) == {todo.rate: False}
    assert [sample.error for sample in again.lost] == ["ServerFailedError: gone"]


def outcome(peer: float, split: float, one: float) -> goodput.Outcome:
    sides: Mapping[str, tuple[str, list[float]]] = {
        "peer": ("p", [peer]),
        "split": ("s", [split]),
        "one process": ("o", [one]),
    }
    return goodput.Outcome("poisson", sides)


def test_it_holds_on_two_of_three_and_is_open_while_it_may_yet() -> None:
    good, bad, unknown = outcome(1, 1.2, 1), outcome(1, 1.1, 1.1), goodput.Outcome("poisson", {})
    assert holds([good, good, unknown]) is True
    assert holds([good, bad, unknown]) is None
    assert holds([good, bad]) is None  # the third was not asked for
    assert holds([bad, bad, good]) is False
    assert outcome(0, 1, 0).ratio == float("inf") and outcome(0, 0, 0).ratio == 0.0


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_another_rate_asks_the_same_closer_together(arrivals: str) -> None:
    slow, fast = (plan(arrivals, rate, 3, 50) for rate in (1.0, 4.0))
    assert len(slow) == 50
    assert [replace(request, at=request.at / 4) for request in slow] == [replace(one, at=one.at) for one in fast]
    assert 20 < slow[-1].at < 110
    assert plan(arrivals, 1.0, 4, 50) != slow


def test_the_traces_lengths_are_scaled() -> None:
    long = [len(request.prompt) for seed in range(5) for request in plan("azure-conv", 1.0, seed, 100)]
    assert 60 < sum(long) / len(long) < 240  # 1,155 x 0.12


def test_who_failed_met_nothing() -> None:
    draw = random.Random(0)
    times = [tuple(0.1 + 0.02 * n for n in range(draw.randrange(2, 9))) for _ in range(9)]
    good = [Record(n, "", 0.0, 0.0, at, finish_reason="length", status=200) for n, at in enumerate(times)]
    figures = judged([*good, Record(9, "", 0.0, 0.0, error="gone")], Target(ttft=200, tpot=30))
    assert figures["met_percent"] == 90.0
    assert judged(good, Target(ttft=200, tpot=10))["met_percent"] == 0.0
    assert figures["p90_ttft_ms"] == pytest.approx(100)


def test_a_turn_is_of_one_search() -> None:
    assert Ask(MODEL, "vllm", "poisson", 2, 1.5).turn == Turn(MODEL, "goodput", 2, "poisson", "vllm")


def test_a_report_of_nothing_makes_no_model_and_overwrites_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "goodput.md").write_text("published")
    monkeypatch.setattr("bench.cpu.__main__.MODELS", {})  # a model that is asked for would be a KeyError
    assert main(["--report", "--out", str(tmp_path / "out"), "--publish", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "measure first" in err
    assert (tmp_path / "goodput.md").read_text() == "published"
    assert main(["--report", "--fresh"]) == 2 and "--fresh" in capsys.readouterr().err
