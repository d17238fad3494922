"""The SLO window: percentiles, attainment, bounds, restarts of the core. Time is given."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.agent_plant import Plant

from semipd_agent.slo.window import CAPACITY, Evidence, RequestWindow, attainment, percentile
from semipd_engine.contract import Arrival, EngineSnapshot, EngineState, FinishedRequest

pytestmark = pytest.mark.unit


def finished(cursor: int, at: float, ttft: float | None = 0.1, tpot: float | None = 0.01) -> FinishedRequest:
    return FinishedRequest(
        cursor=cursor,
        finished_at=at,
        prompt_tokens=10,
        cached_tokens=0,
        output_tokens=5,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        finish_reason="stop",
    )


def snapshot(now: float, requests: list[FinishedRequest], next_cursor: int) -> EngineSnapshot:
    return EngineSnapshot(
        monotonic_time=now, state=EngineState.READY, finished=tuple(requests), next_cursor=next_cursor
    )


@pytest.mark.parametrize(
    ("p", "n", "rank"), [(50, 1, 1), (90, 1, 1), (90, 9, 9), (90, 10, 9), (90, 11, 10), (99, 100, 99), (95, 20, 19)]
)
def test_percentile_is_the_nearest_rank(p: int, n: int, rank: int) -> None:
    values = [float(v) for v in range(1, n + 1)]
    random.Random(0).shuffle(values)
    assert percentile(values, p) == rank


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([50, 90, 95, 99]))
def test_at_least_p_percent_are_at_or_below_the_percentile(values: list[float], p: int) -> None:
    at = percentile(values, p)
    assert sum(v <= at for v in values) / len(values) >= p / 100
    assert sum(v < at for v in values) / len(values) < p / 100


def test_percentile_of_nothing_is_an_error_and_attainment_unknown() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 90)
    assert attainment([], 1.0) is None
    assert attainment([1.0, 2.0, 3.0, 4.0], 2.0) == 0.5


def test_requests_leave_the_window_and_unknown_latencies_are_left_out() -> None:
    window = RequestWindow(60)
    window.add(snapshot(100, [finished(0, 90), finished(1, 95, ttft=None), finished(2, 99, tpot=None)], 3))
    assert (len(window.ttft(100, 60)), len(window.tpot(100, 60))) == (2, 2)
    assert len(window.requests(100, 3)) == 1
    assert len(window.requests(152)) == 2
    assert window.requests(160) == ()


def test_no_request_counts_twice_even_if_the_engine_repeats_it() -> None:
    window = RequestWindow(60)
    window.add(snapshot(10, [finished(0, 9), finished(1, 9.5)], 2))
    window.add(snapshot(11, [finished(1, 9.5), finished(2, 10.5)], 3))
    assert [r.cursor for r in window.requests(11)] == [0, 1, 2]


def test_a_new_core_counts_from_zero_and_its_requests_are_taken() -> None:
    window = RequestWindow(60)
    window.add(snapshot(10, [finished(c, 9) for c in range(50)], 50))
    window.add(snapshot(12, [], 2))  # asked for requests after 50, the new core has finished two
    assert window.cursor == 0
    window.add(snapshot(13, [finished(0, 11), finished(1, 12)], 2))
    assert len(window.requests(13)) == 52


def test_the_ring_is_bounded() -> None:
    window = RequestWindow(3600)
    window.add(snapshot(10, [finished(c, 10) for c in range(CAPACITY + 100)], CAPACITY + 100))
    assert len(window.requests(10)) == CAPACITY


def test_those_that_wait_are_the_last_to_have_arrived() -> None:
    arrivals = tuple(Arrival(at=float(t), prompt_tokens=1) for t in range(5))
    assert Evidence(arrivals=arrivals, waiting=2).waiting_since() == [3.0, 4.0]
    assert Evidence(arrivals=arrivals, waiting=0).waiting_since() == []
    assert len(Evidence(arrivals=arrivals, waiting=9).waiting_since()) == 5


def test_the_plant_reports_what_a_core_would() -> None:
    from collections import deque

    from tests.unit.agent_plant import Job

    plant = Plant(deque([Job(0.0, 100, 11), Job(0.0, 100, 1)]))
    plant.advance(5.0)
    first, second = sorted(plant.finished, key=lambda r: r.output_tokens)
    assert first.tpot_seconds is None and first.ttft_seconds == pytest.approx(0.3, abs=0.03)
    assert second.ttft_seconds == pytest.approx(0.1, abs=0.02)
    assert second.tpot_seconds == pytest.approx(0.024 + 0.1 / 10, rel=0.2)
