"""Latency definitions and summaries of the load client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.traffic import records
from bench.traffic.records import HUNG_UP, Record, Target, quantile, summarise

pytestmark = pytest.mark.unit


def answered(*times: float, sent: float = 0.0, planned: float = 0.0) -> Record:
    return Record(0, "", planned, sent, token_times=times, finish_reason="length", status=200)


def test_latency_definitions() -> None:
    record = answered(1.5, 1.6, 1.9, 2.0, sent=1.2, planned=1.0)
    assert record.late == pytest.approx(0.2), "and that is the client's own"
    assert record.ttft == pytest.approx(0.5)
    assert record.tpot == pytest.approx(0.5 / 3)
    assert record.gaps == pytest.approx([0.1, 0.3, 0.1])
    assert record.longest_gap == pytest.approx(0.3)


def test_one_token_has_no_tpot_and_none_has_no_ttft() -> None:
    assert answered(1.0).tpot is None and answered(1.0).longest_gap is None
    assert answered().ttft is None


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([7], 99, 7), ([1, 2, 3, 4], 50, 2), (range(1, 101), 90, 90), (range(1, 11), 99, 10)],
)
def test_quantile_is_nearest_rank(values: list[float], percent: float, expected: float | None) -> None:
    assert quantile(values, percent) == expected


def test_summary_counts_rejects_apart_from_failures() -> None:
    found = [
        answered(0.2, 0.3),
        Record(1, "", 1.0, 1.25, status=429, error="HTTP 429: full"),
        Record(2, "", 2.0, 2.0, error="ConnectError: refused"),
        Record(3, "", 2.0, 2.0, token_times=(3.0,), status=200),  # the stream ended without a finish reason
    ]
    summary = summarise(found)
    assert (summary.requests, summary.ok, summary.rejected, summary.failed) == (4, 1, 1, 2)
    assert summary.errors == ("ConnectError: refused", "no finish reason")
    assert summary.tokens == 3
    assert summary.seconds == pytest.approx(3.0)
    assert summary.late is not None and summary.late.max == pytest.approx(250)
    assert summary.attainment_percent is None


def test_a_client_that_is_late_is_refused() -> None:
    punctual = [answered(0.2, sent=0.01)] * 199
    records.assert_punctual([*punctual, answered(9.0, sent=8.0)])
    with pytest.raises(records.ClientLateError, match="8000 ms"):
        records.assert_punctual([*punctual, *[answered(9.0, sent=8.0)] * 3])


def test_attainment_counts_every_request_sent() -> None:
    slow, fast = answered(0.9, 1.0), answered(0.1, 0.2)
    rejected = Record(2, "", 0.0, 0.0, status=503, error="HTTP 503")
    target = Target(ttft=500, tpot=150)
    assert summarise([slow, fast, fast, rejected], target).attainment_percent == 50
    assert not Target(gap=50).met_by(fast)
    assert Target(tpot=1).met_by(answered(9.9)), "one token cannot miss a TPOT target"


def test_a_stream_that_was_closed_before_its_first_token_meets_nothing() -> None:
    silent = Record(0, "", 0.0, 0.0, finish_reason=HUNG_UP, status=200, ended=9.0)
    assert silent.ok and not Target(ttft=500).met_by(silent) and not Target(gap=500).met_by(silent)


def test_the_wait_at_a_hang_up_is_a_gap() -> None:
    stalled = Record(0, "", 0.0, 0.0, token_times=(0.1, 0.2), finish_reason=HUNG_UP, status=200, ended=3.2)
    assert stalled.longest_gap == pytest.approx(3.0) and not Target(gap=500).met_by(stalled)
    ended = replace(stalled, finish_reason="length")
    assert ended.longest_gap == pytest.approx(0.1), "what comes after the last token of an answer is no gap"


def test_records_survive_the_file(tmp_path: Path) -> None:
    found = [Record(0, "a", 0.0, 0.1, (0.2, 0.3), (5, 6), "hi", 7, "stop", 200), Record(1, "", 1.0, 1.0, error="no")]
    records.write(found, tmp_path / "r.jsonl")
    assert records.read(tmp_path / "r.jsonl") == found


def test_lines_name_what_went_wrong() -> None:
    text = "\n".join(summarise([Record(0, "", 0, 0, error="ReadTimeout: silence")]).lines())
    assert "1 failed" in text and "ReadTimeout: silence" in text
