"""`make bench-mixed`: what is said to be the best of a mixed step, and the files; no engine runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.model_folder import write_model

from bench import mixed_time
from bench.mixed_time import CASES, CONTEXT, figures, sentences
from semipd_agent.slo.step_model import StepModel, StepProfile

pytestmark = pytest.mark.unit
PREFILL, DECODE = (1e-3, 2e-4, 1e-7), (9e-3, 1e-3, 2e-6)
MODEL = StepModel(StepProfile(PREFILL, DECODE, measured=True))


def read_by(chunk: int) -> float:
    """Positions that a chunk's rows read, which begins at `CONTEXT`."""
    return chunk * (CONTEXT + (chunk + 1) / 2)


def taken(rows: int, chunk: int, factor: float) -> float:
    """Seconds on a machine whose steps are the model's, mixed ones so many times the best."""
    if rows and chunk:
        return factor * MODEL.mixed_seconds(chunk, read_by(chunk), rows, rows * CONTEXT)
    if chunk:
        return PREFILL[0] + PREFILL[1] * chunk + PREFILL[2] * read_by(chunk)
    return DECODE[0] + (DECODE[1] + DECODE[2] * CONTEXT) * rows


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_the_best_of_a_mixed_step_is_what_the_step_model_says(factor: float) -> None:
    """With 64 tokens decode's fixed part is the longer one or not, with 256 the chunk's: of both there is a case."""
    seconds = {case: [taken(*case, factor)] * 2 + [9.0] for case in CASES}  # one of three was disturbed
    found = figures(seconds)
    assert (found["fixed_ms"], found["row_ms"]) == (pytest.approx(9.0), pytest.approx(1.512))
    mixed = [step for step in found["steps"] if "best_ms" in step]
    assert [(step["rows"], step["prompt_tokens"]) for step in mixed] == [case for case in CASES if all(case)]
    assert [step["times_best"] for step in mixed] == [factor] * len(mixed)
    assert all(step["each_ms"][-1] == 9000.0 for step in found["steps"])


def test_a_chunk_that_is_shorter_than_a_decode_step_hides_in_it() -> None:
    seconds = {case: [taken(*case, 1.0)] for case in CASES}
    seconds |= {(0, chunk): [1e-3] for _, chunk in CASES if chunk}
    best = {(s["rows"], s["prompt_tokens"]): s["best_ms"] for s in figures(seconds)["steps"] if "best_ms" in s}
    assert best[1, 64] == best[1, 256] == pytest.approx(9.0 + 1.512)


def test_what_was_measured_is_written_drawn_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Worker:
        kernels = "stand-in"

        def __init__(self, *_: object) -> None:
            pass

        def step(self, rows: int, chunk: int) -> float:
            return taken(rows, chunk, 1.25)

    monkeypatch.setattr(mixed_time, "Worker", Worker)
    model = tmp_path / "a-model"
    with pytest.raises(SystemExit) as refused:
        mixed_time.main([str(model)])
    assert refused.value.code == 2 and f"argument model: {model} is no directory" in capsys.readouterr().err
    write_model(model)
    mixed_time.main([str(model), "--rounds", "2", "--clock", "cpu", "--out", str(tmp_path / "out")])
    told = json.loads((tmp_path / "out" / "mixed_time.json").read_text())
    assert told["commit"] and told["machine"] and told["versions"]["python"]
    assert (told["model"], told["kernels"], told["clock"], told["rounds"]) == ("a-model", "stand-in", "cpu", 2)
    assert len(told["steps"]) == len(CASES) and all(len(step["each_ms"]) == 2 for step in told["steps"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == sentences(told) and lines[-1].endswith("1.25 times that")
    drawn = (tmp_path / "out" / "mixed_time.svg").read_text()
    assert drawn.count("<svg") == 1 and len(drawn) > 10_000
    with pytest.raises(SystemExit) as ended:
        mixed_time.main(["--rounds", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "bench.mixed_time: argument --rounds: 0: must be at least 1; see bench.mixed_time --help\n"
    )
