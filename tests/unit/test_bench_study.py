"""`make bench-study`: its keys, its choice in hindsight, breaking off and going on, its table and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.study import __main__ as study
from bench.study import plan, report
from semipd_cli.simulator.engine import Size
from semipd_cli.simulator.study import Outcome
from semipd_cli.simulator.workloads import Lengths, Workload, steady

pytestmark = pytest.mark.unit
CASE = plan.Case(Workload("w", 500, 30, steady(3.0, Lengths(200, 20)), stationary=False), 25.0, Size())


def outcome(policy: str, seed: int, attainment: float) -> Outcome:
    return Outcome(
        "w", policy, seed, 100, attainment, (0.1, 0.2), (0.01, 0.02), 1, 6.0, 0, 0.0, 0.1, ((0.0, 100, 100),)
    )


def of(played: dict[str, Outcome], code: plan.Code) -> Callable[[plan.Unit], report.Played | None]:
    """These runs, of this code."""

    def found(unit: plan.Unit) -> report.Played | None:
        outcome = played.get(unit.key(code))
        return None if outcome is None else report.Played(outcome, code.of(unit.policy))

    return found


def test_a_run_is_known_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = plan.Unit(CASE, "auto", 1)
    others = [
        plan.Unit(CASE, "100/100", 1),
        plan.Unit(CASE, "auto", 2),
        plan.Unit(replace(CASE, seconds=26.0), "auto", 1),
        plan.Unit(replace(CASE, size=Size(max_num_seqs=8)), "auto", 1),
        plan.Unit(replace(CASE, workload=replace(CASE.workload, ttft_milliseconds=501)), "auto", 1),
        plan.Unit(replace(CASE, workload=replace(CASE.workload, arrivals=steady(3.1, Lengths(200, 20)))), "auto", 1),
        plan.Unit(replace(CASE, workload=replace(CASE.workload, arrivals=steady(3.0, Lengths(200, 21)))), "auto", 1),
        plan.Unit(replace(CASE, workload=replace(CASE.workload, stationary=True)), "auto", 1),
    ]
    code, changed = plan.Code("engine", "policies"), plan.Code("changed", "changed")
    assert unit.key(code) == plan.Unit(CASE, "auto", 1).key(code)
    assert len({unit.key(code), unit.key(changed), *(other.key(code) for other in others)}) == 2 + len(others)
    warmed = others[-1].key(code)
    monkeypatch.setattr(plan, "WARM_UP", 61.0)
    assert others[-1].key(code) != warmed


@pytest.mark.parametrize(
    ("policy", "depends"),
    [
        ("auto", True),
        ("auto+mixed", True),
        ("algorithm1", True),
        ("100/100", False),
        ("100/20", False),
        ("mixed/256", False),
    ],
)
def test_a_constant_split_is_not_played_again_for_another_policy(policy: str, depends: bool) -> None:
    unit, code = plan.Unit(CASE, policy, 1), plan.Code("engine", "policies")
    assert (unit.key(code) != unit.key(replace(code, policies="others"))) == depends
    assert unit.key(code) != unit.key(plan.Code("other", "other"))


def test_no_judged_stretch_of_a_trace_is_seen_in_training(tmp_path: Path) -> None:
    """Of a trace whose prompts are as long as their second. The first stretch is nobody's."""
    path = tmp_path / "t.csv"
    path.write_text("t_s,input_tokens,output_tokens\n" + "".join(f"{t / 4},{1 + t // 4},1\n" for t in range(560)))
    workload, seconds = plan._part(path, 1.0, 500, 30, 140.0, 10.0)
    found = {seed: {a.prompt for a in workload.arrivals(seconds, seed)} for seed in (*plan.TRAINING, *plan.SEEDS)}
    assert all(len(prompts) == 10 for prompts in found.values())
    assert len(set().union(*found.values())) == 130, "no second is played twice"
    assert min(set().union(*found.values())) == 11
    judged = sorted(min(found[seed]) for seed in plan.SEEDS)
    assert judged == [31, 51, 81, 101, 131], "spread over the trace"
    with pytest.raises(ValueError, match="14 stretches"):
        plan._part(path, 1.0, 500, 30, 140.0, 11.0)


def test_the_published_table_is_that_of_the_published_figures() -> None:
    docs = Path(__file__).parents[2] / "docs"
    told = json.loads((docs / "benchmarks" / "study.json").read_text())
    assert told["commit"]
    assert report.markdown(report.read(told)) in (docs / "controller.md").read_text()


def test_training_and_judged_seeds_have_none_in_common() -> None:
    assert not set(plan.TRAINING) & set(plan.SEEDS)
    assert len(plan.SEEDS) >= 5


def test_hindsight_is_the_best_of_those_that_were_played_on_all_seeds() -> None:
    done = [outcome("100/30", s, 0.8) for s in (1, 2)] + [outcome("40/100", 1, 0.99), outcome("100/60", 2, 0.9)]
    done += [outcome("100/60", 1, 0.9), outcome("auto", 1, 1.0)]
    assert plan.best(done, ("40/100", "100/30", "100/60"), 2, (1, 2)) == ["100/60", "100/30"]


def test_under_a_constant_load_moves_are_counted_in_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """One move in 200 s says nothing of an hour."""
    monkeypatch.setattr(plan, "HINDSIGHT", ("100/100",))
    monkeypatch.setattr(plan, "BUDGETS", ("mixed/256",))
    case = replace(CASE, workload=replace(CASE.workload, stationary=True))
    code, policies = plan.Code("engine", "policies"), (*plan.RULES, "mixed/256")
    short = [plan.Unit(case, policy, seed) for policy in policies for seed in plan.SEEDS]
    played = {unit.key(code): outcome(unit.policy, unit.seed, 0.9) for unit in short}
    found = {row.rule: row for row in report.rows([case], of(played, code))}
    assert found["auto"].moves_an_hour == (), "they were not played yet"
    assert "| 90.0 | not played |" in report.markdown(list(found.values()))
    assert list(plan.hour_units(CASE)) == []
    hours = list(plan.hour_units(case))
    assert {unit.case.seconds for unit in hours} == {3600.0}
    played |= {unit.key(code): replace(outcome("auto", unit.seed, 0.9), moves_an_hour=2.0) for unit in hours}
    found = {row.rule: row for row in report.rows([case], of(played, code))}
    assert found["auto"].moves_an_hour == (2.0,) and found["algorithm1"].moves_an_hour == (6.0,) * 5


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "cases", lambda traces: [CASE])
    monkeypatch.setattr(plan, "HINDSIGHT", ("100/100", "100/30"))
    monkeypatch.setattr(plan, "BUDGETS", ("mixed/256",))


def test_what_was_broken_off_goes_on_and_is_reported(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*more: str) -> int:
        arguments = ["--runs", str(tmp_path / "runs.jsonl"), "--out", str(tmp_path / "out"), *more]
        monkeypatch.setattr(sys, "argv", ["bench.study", *arguments])
        return study.main()

    assert call("--minutes", "0") == 0
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert call() == 0
    played = (tmp_path / "runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text("\n".join(played[:-1]) + '\n{"cut off')
    assert call() == 0
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == len(played) + 1, "only what was cut off is played"
    told = json.loads((tmp_path / "out" / "study.json").read_text())
    assert len(told["splits_of_auto"]) == len(plan.SEEDS)
    assert {row["rule"] for row in told["rows"]} == set(report.ORDER)
    assert all(len(row["attainment"]) == len(plan.SEEDS) for row in told["rows"])
    assert call("--seeds", "3") == 0
    told = json.loads((tmp_path / "out" / "study.json").read_text())
    assert told["held_out_seeds"] == [101, 102, 103]
    assert all(len(row["attainment"]) == 3 for row in told["rows"])
    assert (tmp_path / "out" / "study.svg").stat().st_size > 10_000
    assert "| w | " in (tmp_path / "out" / "study.md").read_text()


def test_runs_of_older_code_stand_in_where_todays_are_missing_and_each_row_tells_whose_it_has(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, seeds = tmp_path / "runs.jsonl", plan.SEEDS[:2]

    def keep(code: str, attainment: float, policies: tuple[str, ...], seeds: Sequence[int], at: str) -> None:
        with runs.open("a") as file:
            for unit in (plan.Unit(CASE, policy, seed) for policy in policies for seed in seeds):
                made = {"key": unit.key(plan.Code(code, code)), "code": code} | ({"commit": at} if at else {})
                told = outcome(unit.policy, unit.seed, attainment).as_json()
                file.write(json.dumps({**made, **told}) + "\n")

    def rows(*also: str) -> dict[str, list[object]]:
        words = ["--minutes", "0", "--seeds", "2", "--runs", str(runs), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["bench.study", *words, *also])
        assert study.main() == 0
        found = json.loads((tmp_path / "out" / "study.json").read_text())["rows"]
        return {row["rule"]: [*row["attainment"], *(tuple(by.values()) for by in row["played_by"])] for row in found}

    monkeypatch.setattr(plan, "code", lambda: plan.Code("engine", "policies"))
    keep("oldest", 0.6, ("auto", "100/100", "100/30", "mixed/256"), seeds, "")
    keep("older", 0.7, ("auto", "100/100"), seeds, "aaa")
    keep("policies", 0.9, ("auto",), seeds[:1], "bbb")
    found = rows("--also", "older", "--also", "oldest")
    assert found["auto"] == [0.9, 0.7, ("policies", "bbb"), ("older", "aaa")]
    assert found["100/100"] == [0.7, 0.7, ("older", "aaa")]
    assert found[report.MIXED] == [0.6, 0.6, ("oldest", "")]
    (said,) = [line for line in (tmp_path / "out" / "study.md").read_text().splitlines() if "older code" in line]
    assert "auto" in said and "100/100" in said and report.MIXED in said
    (tmp_path / "out" / "study.json").unlink()
    monkeypatch.setattr(sys, "argv", ["bench.study", "--minutes", "0", "--seeds", "2", "--runs", str(runs)])
    assert study.main() == 0
    assert not (tmp_path / "out" / "study.json").exists(), "unasked no older run counts"
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["bench.study", "--runs", str(runs), "--also", "another"])
    assert study.main() == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "--also another" in told and "older, oldest, policies" in told


def test_a_part_of_the_plan_is_played_and_the_rest_later(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs.jsonl"

    def call(*parts: str) -> set[str]:
        arguments = ["--runs", str(runs), "--out", str(tmp_path / "out"), "--seeds", "2", *parts]
        monkeypatch.setattr(sys, "argv", ["bench.study", *arguments])
        assert study.main() == 0
        return {json.loads(line)["policy"] for line in runs.read_text().splitlines()}

    assert call("--policies", "constants,auto") == {"auto", *plan.HINDSIGHT}
    told = json.loads((tmp_path / "out" / "study.json").read_text())
    assert {row["rule"] for row in told["rows"]} == {"auto", "100/100", report.CONSTANT}
    assert call() == {*plan.RULES, *plan.HINDSIGHT, *plan.BUDGETS}
    with pytest.raises(SystemExit) as ended:
        call("--policies", "constant")
    assert (
        ended.value.code == 2 and "constant: no part of the study; there are auto, constants" in capsys.readouterr().err
    )


def test_what_is_broken_off_tells_auto_and_the_constants_of_each_workload() -> None:
    code, seeds = plan.Code("engine", "policies"), plan.SEEDS[:2]
    units = [plan.Unit(CASE, policy, seed) for policy in ("auto", *plan.HINDSIGHT) for seed in seeds]
    played = {unit.key(code): outcome(unit.policy, unit.seed, 0.9) for unit in units}
    assert [row.rule for row in report.rows([CASE], of(played, code), seeds)] == ["auto", "100/100", "best constant"]
    assert report.rows([CASE], of(played, code)) == [], "on two of five seeds nothing is complete"


def test_a_wrong_workload_gets_one_line(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.study", "--workload", "nothing"])
    assert study.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
