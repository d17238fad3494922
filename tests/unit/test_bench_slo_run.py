"""`make bench-slo`: its files and page, whom it asks, and what it counts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.slo_runs import PLAN, arm, whole

from bench.cpu.figures import UnusableError
from bench.slo import contenders, log, plan, report, series
from bench.slo.__main__ import main as bench_slo
from bench.slo.plan import AGAIN, AUTO, ONE, STILL, WHOLE
from bench.slo.prediction import ChangedError, seal, unsealed
from bench.slo.run import figures_of, minutes
from bench.slo.series import load
from bench.slo.verdicts import in_a_row, outcome
from bench.traffic import Record, Target
from semipd_engine.contract import Split

pytestmark = pytest.mark.unit


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


def registered(out: Path) -> str:
    """A folder in which run 1 has ended and run 2 has begun: the digest of run 2's plan."""
    out.mkdir(parents=True)
    log.append(out / series.LOG, log.Entry(1, log.ENDED, "d1", "c", "t", "holds"))
    (out / "run-2").mkdir()
    (out / "run-2" / "profile.json").write_text("{}")
    profile = hashlib.sha256(b"{}").hexdigest()
    return seal(out / "run-2" / series.PLAN, replace(PLAN, number=2, profile=profile).as_json())


def cut(path: Path, entry: log.Entry, length: int) -> None:
    """A kill has left so much of the entry's line."""
    before = path.read_bytes() if path.exists() else b""
    log.append(path, entry)
    path.write_bytes(path.read_bytes()[: len(before) + length])


@pytest.mark.parametrize("length", [1, 12, 40, 90])
def test_half_a_line_is_a_run_where_it_registers_one_and_swallows_no_other(tmp_path: Path, length: int) -> None:
    path = tmp_path / "runs.jsonl"
    log.append(path, ended := log.Entry(1, log.ENDED, "d1" * 32, "c", "t", "holds"))
    begun = log.Entry(2, log.BEGUN, "d2" * 32, "c", "t")
    cut(path, begun, length)
    assert log.read(path) == [ended, log.Entry(2, log.UNREADABLE, "", "", "")]
    assert log.number(log.read(path)) == 2, "it goes on"
    log.append(path, begun)
    cut(path, replace(begun, event=log.ENDED, outcome="holds"), length)
    assert log.last(log.read(path)) == [ended, begun], "its end is said anew when it goes on"
    log.append(path, over := replace(begun, event=log.ENDED, outcome="void"))
    assert log.last(log.read(path)) == [ended, over]


@pytest.mark.parametrize(("length", "how"), [(0, "missing"), (1, "half written"), (60, "half written")])
def test_a_run_whose_line_a_kill_has_cut_is_registered_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], length: int, how: str
) -> None:
    digest = registered(out := tmp_path / "slo")
    cut(out / series.LOG, log.Entry(2, log.BEGUN, digest, PLAN.commit, PLAN.at), length)
    (out / "run-1").mkdir()  # of run 1 there is no plan any more
    assert bench_slo(["--report", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert (
        told.err.count("\n") == 1
        and f"run 2: the line that registers it is {how}: registered again by its plan" in told.err
    )
    assert "bench-slo goes on with it, --give-up ends it" in told.err
    assert f"| 2 | {PLAN.at} | abc | `{digest[:16]}` | {log.BEGUN} |" in told.out and "| 1 | t | c |" in told.out
    assert bench_slo(["--report", "--out", str(out)]) == 0 and capsys.readouterr().err == ""
    series.give_up(out)
    assert log.last(log.read(out / series.LOG))[-1].event == log.GIVEN_UP


def test_a_run_of_which_half_a_line_is_all_that_is_left_stays_in_the_list(tmp_path: Path) -> None:
    path, told = tmp_path / series.LOG, list[str]()
    cut(path, log.Entry(1, log.BEGUN, "d", "c", "t"), 30)
    series.mend(tmp_path, told.append)
    (line,) = told
    assert "run 1: the line that registers it is half written" in line and "given up, and run 2 is next" in line
    assert (log.last(log.read(path))[0].event, log.number(log.read(path))) == (log.GIVEN_UP, 2)
    series.mend(tmp_path, told.append)
    assert told == [line]


def test_a_run_that_has_begun_and_whose_plan_is_gone_is_given_up(tmp_path: Path) -> None:
    """Planned anew under its number, it would be another run that hides the first."""
    told, begun = list[str](), log.Entry(1, log.BEGUN, "d", "c", "t")
    log.append(tmp_path / series.LOG, begun)
    series.mend(tmp_path, told.append)
    assert [line.split(": ", 1)[1] for line in told] == [
        f"run 1: {tmp_path}/run-1/prediction.json is gone: it stays in the list as given up, and run 2 is next"
    ]
    (entry,) = log.last(log.read(tmp_path / series.LOG))
    assert replace(entry, at="t") == replace(begun, event=log.GIVEN_UP)


def test_a_plan_that_is_there_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        seal(tmp_path / series.PLAN, PLAN.as_json())
    assert not (tmp_path / series.PLAN).exists()
    monkeypatch.undo()
    digest = seal(tmp_path / series.PLAN, PLAN.as_json())
    assert unsealed(tmp_path / series.PLAN)[1] == digest


def test_holding_runs_are_counted_from_the_last_and_a_void_one_counts_neither_way() -> None:
    assert in_a_row(["holds", "falls short", "holds", "void", "holds"]) == 2
    assert in_a_row(["holds", log.GIVEN_UP]) == 0


@pytest.mark.parametrize(("gone", "row"), [(1, 2), (2, 1), (3, 0)])
def test_a_run_whose_plan_is_gone_ends_the_row_and_is_named(tmp_path: Path, gone: int, row: int) -> None:
    entries = [log.Entry(number, log.ENDED, "d" * 64, "abc", "t", "holds") for number in (1, 2, 3)]
    runs = [replace(whole(), plan=replace(PLAN, number=number)) for number in (1, 2, 3)]
    assert "the last 3 in a row hold" in report.markdown(entries, runs)
    page = report.markdown(entries, [run for run in runs if run.plan.number != gone])
    assert f"the last {row} in a row hold" in page and f"Gone: `run-{gone}/prediction.json`." in page
    rows = [line.split(" | ")[4] for line in page.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 3 |"))]
    assert rows == [report.UNCHECKED if number == gone else "holds" for number in (1, 2, 3)]


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
