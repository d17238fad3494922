"""Requests count while they suffer: waiting, stalled, abandoned and refused ones, by both targets together."""

from __future__ import annotations

import pytest
from tests.unit.agent_bench import Bench, config

from semipd_agent.contract import SLO
from semipd_agent.slo.attainment import attainment
from semipd_engine.contract import FinishedRequest, Observation, QueuedRequest, RunningRequest

pytestmark = pytest.mark.unit
SLOS = SLO(ttft_milliseconds=1000, tpot_milliseconds=100)


def over(
    reason: str = "stop", ttft: float | None = 0.5, tpot: float | None = 0.05, waited: float = 1.0
) -> FinishedRequest:
    return FinishedRequest(
        cursor=0,
        received_at=100.0 - waited,
        finished_at=100.0,
        prompt_tokens=1,
        cached_tokens=0,
        output_tokens=10,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        finish_reason=reason,
    )


@pytest.mark.parametrize(
    ("request_", "counted", "met"),
    [
        (over(), 1, 1),
        (over(ttft=1.5), 1, 0),
        (over(tpot=0.2), 1, 0),
        (over(tpot=None), 1, 1),
        (over("abort", ttft=None, tpot=None, waited=5.0), 1, 0),
        (over("abort", ttft=None, tpot=None, waited=0.2), 0, 0),
        (over("abort"), 1, 1),
        (over("rejected", ttft=None, tpot=None, waited=0.0), 1, 0),
        (over("error", ttft=None, tpot=None, waited=0.1), 0, 0),
    ],
    ids=["met", "late", "slow", "one token", "gave up late", "left early", "cut at a stop string", "429", "refused"],
)
def test_requests_that_are_over(request_: FinishedRequest, counted: int, met: int) -> None:
    seen = attainment([request_], None, SLOS)
    assert (seen.requests, seen.met) == (counted, met)


def alive(**running: object) -> Observation:
    fields = {"id": 1, "received_at": 99.0, "prompt_tokens": 5} | running
    return Observation(core_id="c", at=100.0, running=(RunningRequest.model_validate(fields),))


@pytest.mark.parametrize(
    ("now", "counted"),
    [
        (alive(), 0),
        (alive(received_at=98.0), 1),
        (alive(first_token_at=99.5, output_tokens=4), 0),
        (alive(first_token_at=98.4, received_at=98.0, output_tokens=4), 1),
        (alive(first_token_at=99.3, output_tokens=1), 0),
        (alive(first_token_at=96.0, received_at=95.5, output_tokens=25), 1),
        (Observation(core_id="c", at=100.0, queue=(QueuedRequest(id=1, received_at=90.0, uncached_tokens=9),)), 1),
        (Observation(core_id="c", at=100.0, queue=(QueuedRequest(id=1, received_at=99.9, uncached_tokens=9),)), 0),
    ],
    ids=["undecided", "late", "on pace", "stalled", "just begun", "behind", "waits too long", "waits"],
)
def test_requests_that_are_not_over_miss_as_soon_as_nothing_can_help_them(now: Observation, counted: int) -> None:
    seen = attainment([], now, SLOS)
    assert (seen.requests, seen.met) == (counted, 0)


def test_a_stalled_stream_and_a_wall_of_429_are_seen_at_once_and_idle_is_unknown() -> None:
    """Nothing has finished; yet five streams stand still. Later all are gone, and nothing is known any more."""
    bench = Bench(config(slo=SLOS))
    stalled = tuple(
        RunningRequest(
            id=n, received_at=bench.clock.now - 9, prompt_tokens=5, output_tokens=30, first_token_at=bench.clock.now - 8
        )
        for n in range(5)
    )
    bench.controller.observe(bench.snapshot(observation=Observation(core_id="c", at=bench.clock.now, running=stalled)))
    slo = bench.report().slo
    assert slo is not None
    assert (slo.attained, slo.attainment_percent) == (False, 0.0)
    refused = tuple(over("rejected", ttft=None, tpot=None).model_copy(update={"cursor": n}) for n in range(9))
    bench.clock.now = 101.0
    bench.controller.observe(
        bench.snapshot(observation=Observation(core_id="d", at=101.0, finished=refused, next_cursor=9))
    )
    slo = bench.report().slo
    assert slo is not None and slo.ttft is not None
    assert (slo.attained, slo.reason, slo.ttft.samples) == (False, "TTFTAboveTarget", 9)
    assert slo.refused_percent == 100.0
    bench.clock.now += 120
    bench.controller.observe(bench.snapshot(observation=Observation(core_id="d", at=bench.clock.now, next_cursor=9)))
    slo = bench.report().slo
    assert slo is not None
    assert (slo.attained, slo.reason, slo.attainment_percent) == (None, "InsufficientTraffic", None)
    assert slo.refused_percent is None
