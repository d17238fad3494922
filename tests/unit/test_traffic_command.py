"""The load client's command line: what cannot be sent is refused in one line with the flag or the file, status 2."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bench.traffic import plan
from bench.traffic.__main__ import main
from bench.traffic.plan import PlanError, Request, TraceRow

pytestmark = pytest.mark.unit
URL = "http://127.0.0.1:9"
POISSON = ["poisson", URL, "--rate", "2", "--seconds", "1"]
HEAD = b"t_s,input_tokens,output_tokens\n"
GOOD = gzip.compress(HEAD + b"0.0,374,44\n" * 400)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--rate", ["0", "-1", "nan", "inf", "fast", "1e300"]),
        ("--seconds", ["0", "-3", "nan", "inf"]),
        ("--prompt-tokens", ["0", "-1", "1.5"]),
        ("--max-tokens", ["0", "x"]),
        ("--seed", ["x"]),
        ("--silence", ["0", "nan"]),
        ("--ttft", ["0", "-1"]),
        ("--tpot", ["nan"]),
        ("--gap", ["x"]),
        ("--out", ["/", "/dev/null/x"]),
    ],
)
def test_a_bad_flag_is_named(flag: str, values: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for value in values:
        said = refused([*POISSON, flag, value], capsys)
        assert flag.strip("-") in said, said


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://", "ftp://host", ""])
def test_an_address_that_is_none_is_refused_before_anything_is_made(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "http://127.0.0.1:8000" in refused(["ask", url, "why?"], capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"t_s\n", "gzip"),
        (GOOD[:-20], "end-of-stream"),
        (GOOD[:15] + b"\xff\xff\xff" + GOOD[18:], "name a trace"),
        (b"", "no rows"),
        (gzip.compress(HEAD), "no rows"),
        (gzip.compress(b"a,b\n1,2\n"), "row 1: 't_s'"),
        (gzip.compress(HEAD + b"0,1,1\n1,many,1\n"), "row 2: invalid literal"),
        (gzip.compress(HEAD + b"0,1\n"), "row 1"),
        (gzip.compress(HEAD + b"5,1,1\n4,1,1\n"), "row 2: t_s 4"),
        (gzip.compress(HEAD + b"nan,1,1\n"), "row 1: t_s nan"),
        (gzip.compress(b"\xff\xfe"), "codec"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip writes the second of its making
)
def test_a_trace_that_is_none_is_named(
    tmp_path: Path, content: bytes | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv.gz"
    if content is not None:
        path.write_bytes(content)
    said = refused(["trace", URL, str(path), "--rate", "2", "--seconds", "1"], capsys)
    assert str(path) in said and words in said, said


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "no requests"),
        ("{", "line 1"),
        ('{"at": 0, "max_tokens": 1, "prompt": "x"}\n[]', "line 2"),
        ('{"at": 0, "prompt": "x"}', "max_tokens"),
        ('{"at": 0, "max_tokens": 0, "prompt": "x"}', "at least 1"),
        ('{"at": NaN, "max_tokens": 1, "prompt": "x"}', "at"),
        ('{"at": 0, "max_tokens": "many", "prompt": "x"}', "max_tokens"),
        ('{"at": 0, "max_tokens": 1, "prompt": [1, "a"]}', "prompt"),
        ('{"at": 0, "max_tokens": 1, "prompt": "x", "temprature": 1}', "temprature"),
        ('{"at": 0, "max_tokens": 1, "prompt": "x", "after": 0}', "after"),
        ('{"at": 0, "max_tokens": 1, "prompt": "x", "hang_up": -1}', "hang_up"),
    ],
)
def test_a_plan_that_is_none_is_named(
    tmp_path: Path, lines: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.jsonl"
    path.write_text(lines)
    said = refused(["plan", URL, str(path)], capsys)
    assert str(path) in said and words in said, said


def test_a_plan_of_no_rate_or_no_rows_is_a_plan_error() -> None:
    for rate, seconds in ((0.0, 1.0), (-1.0, 1.0), (float("inf"), 1.0), (1.0, float("inf"))):
        with pytest.raises(PlanError, match="more than 0"):
            plan.poisson_plan(rate, seconds, prompt_tokens=1, max_tokens=1, seed=0)
        with pytest.raises(PlanError, match="more than 0"):
            plan.trace_plan([TraceRow(0, 1, 1)], rate=rate, seconds=seconds)
    with pytest.raises(PlanError, match="no rows"):
        plan.trace_plan([], rate=1, seconds=1)
    (request,) = plan.trace_plan([TraceRow(0, 1, 1)], rate=1, seconds=1, length_scale=1e308)
    assert len(request.prompt) == 1_024


def test_a_server_that_is_not_there_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.jsonl"
    path.write_text(json.dumps({"at": 0, "max_tokens": 1, "prompt": "x"}))
    assert plan.read(path) == [Request(0, 1, "x")]
    assert main(["plan", URL, str(path), "--out", str(tmp_path / "made" / "records")]) == 1
    assert URL in capsys.readouterr().err
