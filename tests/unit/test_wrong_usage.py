"""What a user may type wrongly: one line, which names the flag and what it takes, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import kept
from bench.capacity.__main__ import main as capacity
from bench.replicas.__main__ import main as replicas
from bench.slo.prediction import main as prediction
from bench.study.__main__ import main as study
from semipd_cli.__main__ import command
from semipd_engine.cli import main as engine

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "semipd run: the following arguments are required: -f/--file; see semipd run --help"),
        (["run", "-f", "x.yaml", "--port", "http"], "semipd run: argument --port: invalid int value: 'http'"),
        (["serve"], "semipd: argument COMMAND: invalid choice: 'serve'"),
        (["simulate", "--seconds", "long"], "semipd simulate: argument --seconds: invalid float value: 'long'"),
        (
            ["simulate", "--oracle", "tpu"],
            "semipd simulate: argument --oracle: invalid choice: 'tpu' (choose from 'cpu'",
        ),
    ],
)
def test_wrong_flags_get_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(says) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["profile", "m"], "semipd-engine profile: the following arguments are required: --out; see"),
        (["profile", "m", "--out", "f", "--dtype", "int3"], "semipd-engine profile: argument --dtype: invalid"),
        (["serve", "--model", "m", "--max-num-seqs", "0"], "semipd-engine serve: --max-num-seqs 0: Input should be"),
        (["serve", "--model", "m", "--fast"], "semipd-engine serve: unrecognized arguments: --fast; see"),
        (["serve"], "semipd-engine serve: the following arguments are required: --model; see"),
    ],
)
def test_so_do_the_engines_programs(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        engine(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(says) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("main", "flags"),
    [(capacity, ()), (replicas, ()), (study, ()), (prediction, ("profile.json",))],
    ids=["capacity", "replicas", "study", "prediction"],
)
def test_a_bench_that_could_not_write_plays_nothing(
    main: Callable[[], int],
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["bench", *flags, "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "--out" in error and "cannot be written" in error and error.count("\n") == 1


@pytest.mark.parametrize(("main", "name"), [(capacity, "capacity.json"), (replicas, "replicas.json")])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_what_is_kept_and_cannot_be_read_is_named(
    main: Callable[[], int], name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(content)
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=rf"{name}: it .*; remove it, or name another --out"):
        main()
    assert kept.read(tmp_path / "none.json") == {}


def test_a_bench_of_capacity_without_time_ends_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path), "--minutes", "0"])
    assert capacity() == 1


def test_an_agent_that_cannot_listen_says_so_in_its_last_line(tmp_path: Path) -> None:
    agent = [sys.executable, "-m", "semipd_agent", "--port", "70000", "--", "--model", str(tmp_path), "--device", "cpu"]
    ended = subprocess.run(agent, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("semipd-agent: cannot listen on") and last.endswith("use --port or --host")
