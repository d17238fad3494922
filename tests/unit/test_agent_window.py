"""The SLO window: percentiles, attainment, bounds, restarts of the core. Time is given."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd_agent.slo.window import CAPACITY, Evidence, RequestWindow, percentile
from semipd_engine.contract import FinishedRequest, Observation, QueuedRequest, RunningRequest

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


def seen(now: float, requests: list[FinishedRequest], next_cursor: int, core: str = "a") -> Observation:
    return Observation(core_id=core, at=now, finished=tuple(requests), next_cursor=next_cursor)


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


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 90)


def test_requests_leave_the_window() -> None:
    window = RequestWindow(60)
    window.add(seen(100, [finished(0, 90), finished(1, 95, ttft=None), finished(2, 99, tpot=None)], 3))
    assert len(window.requests(100)) == 3
    assert len(window.requests(100, 3)) == 1
    assert len(window.requests(152)) == 2
    assert window.requests(160) == ()


def test_no_request_counts_twice_even_if_the_engine_repeats_it() -> None:
    window = RequestWindow(60)
    window.add(seen(10, [finished(0, 9), finished(1, 9.5)], 2))
    window.add(seen(11, [finished(1, 9.5), finished(2, 10.5)], 3))
    assert [r.cursor for r in window.requests(11)] == [0, 1, 2]


def test_a_new_core_counts_from_zero_and_its_requests_are_taken() -> None:
    window = RequestWindow(60)
    window.add(seen(10, [finished(c, 9) for c in range(50)], 50))
    window.add(seen(12, [], 2, "b"))  # asked for requests after 50, the new core has finished two
    assert window.cursor == 0
    window.add(seen(13, [finished(0, 11), finished(1, 12)], 2, "b"))
    assert len(window.requests(13)) == 52


def test_the_ring_is_bounded() -> None:
    window = RequestWindow(3600)
    window.add(seen(10, [finished(c, 10) for c in range(CAPACITY + 100)], CAPACITY + 100))
    assert len(window.requests(10)) == CAPACITY


def test_those_that_wait_are_told_by_core() -> None:
    """A preempted request waits, too, but its first token is long out: it is no miss of TTFT."""
    queue = (
        QueuedRequest(id=3, received_at=8.0, uncached_tokens=9),
        QueuedRequest(id=1, received_at=1.0, uncached_tokens=9, output_tokens=4, first_token_at=2.0),
    )
    running = (RunningRequest(id=2, received_at=5.0, prompt_tokens=9, uncomputed_tokens=3),)
    evidence = Evidence.of(Observation(core_id="c", at=10.0, queue=queue, running=running), ())
    assert evidence.waiting == (5.0, 8.0)
    assert not evidence.held_back
    assert Evidence.of(Observation(core_id="c", at=10.0, queue=queue), ()).held_back
