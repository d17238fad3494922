"""Readiness, back-pressure and draining on a fake clock."""

from __future__ import annotations

from functools import cache

import pytest

from semipd_cli.simulator.engine import Size, VirtualEngine
from semipd_cli.simulator.oracle import CPU
from semipd_cli.simulator.workloads import Lengths, stream
from semipd_engine.contract import Split
from semipd_engine.ipc.requests import CoreState
from semipd_engine.server.admission import Admission
from semipd_engine.server.errors import ApiError

pytestmark = pytest.mark.unit

READY = CoreState(ready=True, state="ready", admitting=True)
DEGRADED = CoreState(ready=False, state="degraded", message="no working decode worker", admitting=True)
LOADING = CoreState(ready=False, state="loading", message="40 % of the weights")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission(4, clock)


def status(admission: Admission, waiting: int = 0) -> int:
    try:
        admission.check(waiting)
    except ApiError as error:
        assert error.retry_after
        return error.status
    return 200


def test_nobody_is_let_in_before_core_is_ready(admission: Admission) -> None:
    assert (status(admission), admission.not_ready_reason()) == (503, "the engine is starting")
    admission.core_state(LOADING)
    assert (status(admission), admission.not_ready_reason()) == (503, "40 % of the weights")
    admission.core_state(READY)
    assert (status(admission), admission.not_ready_reason()) == (200, None)


def test_what_core_says_counts_at_once(admission: Admission) -> None:
    """Core hides its workers' short outages itself; requests queue meanwhile."""
    admission.core_state(READY)
    admission.core_state(DEGRADED)
    assert (status(admission), admission.not_ready_reason()) == (200, "no working decode worker")


def test_a_short_outage_of_core_flips_nothing(admission: Admission, clock: Clock) -> None:
    admission.core_state(READY)
    admission.core_lost()
    clock.now += 1
    admission.core_state(LOADING)  # the new core is there, but not ready yet
    clock.now += 0.9
    assert (status(admission), admission.not_ready_reason()) == (200, None)
    clock.now += 0.2
    assert (status(admission), admission.not_ready_reason()) == (503, "40 % of the weights")
    admission.core_state(READY)
    assert (status(admission), admission.not_ready_reason()) == (200, None)


def test_a_core_that_keeps_crashing_has_one_grace(admission: Admission, clock: Clock) -> None:
    admission.core_state(READY)
    for _ in range(5):
        admission.core_lost()
        clock.now += 0.3
        admission.core_state(LOADING)
        clock.now += 0.3
    assert status(admission) == 503


def test_a_silent_core_counts_as_away(admission: Admission, clock: Clock) -> None:
    admission.core_state(READY)
    clock.now += 6.9
    assert admission.not_ready_reason() is None
    clock.now += 0.2
    assert "silent" in str(admission.not_ready_reason()) and status(admission) == 503


def test_the_queue_is_bounded_by_those_who_wait(admission: Admission) -> None:
    admission.core_state(READY)
    assert [status(admission, waiting) for waiting in (3, 4)] == [200, 429]
    admission.core_state(CoreState(ready=True, state="ready", admitting=True, prefilling=2))
    assert [status(admission, waiting) for waiting in (5, 6)] == [200, 429]


def test_drain_fails_the_probe_first_and_admission_after_five_seconds(admission: Admission, clock: Clock) -> None:
    admission.core_state(READY)
    admission.start_drain()
    assert (status(admission), admission.not_ready_reason()) == (200, "the server is draining")
    clock.now += 4.9
    admission.core_state(CoreState(ready=False, state="draining", admitting=True))  # core was told as well
    assert status(admission) == 200
    clock.now += 0.2
    assert status(admission) == 503


def test_a_drained_core_admits_nobody(admission: Admission) -> None:
    admission.core_state(READY)
    admission.core_state(CoreState(ready=False, state="draining", message="drained on request"))
    assert (status(admission), admission.not_ready_reason()) == (503, "drained on request")


TTFT, TPOT, BURST, SECONDS = 1.0, 0.1, (60.0, 120.0), 180.0


@cache
def served(rate: float, burst: float, bound: int) -> tuple[float, float, float]:
    """Requests a second within both targets of those that came between 60 and 120 s, when `burst` a second do (else
    `rate`); part within both of those that came more than 30 s after that; the part that was refused."""
    engine = VirtualEngine([], CPU, Size(max_queued=1 << 30), 0, Split(prefill=100, decode=30))
    admission = Admission(bound, lambda: engine.now)
    begin, end = BURST
    lengths, came, refused = Lengths(1000, 20), list[float](), 0
    arrivals = [
        *stream(rate, begin, lengths, 1),
        *stream(burst, end - begin, lengths, 2, start=begin),
        *stream(rate, SECONDS - end, lengths, 3, start=end),
    ]
    for arrival in arrivals:
        engine.run_until(arrival.at)
        requests = engine._scheduler.table.by_id.values()
        working = sum(r.first_token_at is None for r in engine._scheduler.table.running.values())
        admission.core_state(CoreState(ready=True, state="ready", admitting=True, prefilling=working))
        came.append(arrival.at)
        try:
            admission.check(sum(r.first_token_at is None for r in requests))
        except ApiError:
            refused += 1
        else:
            engine.submit(arrival)
    engine.run_until(SECONDS + 120.0)
    good = [d.at for d in engine.done if d.ttft is not None and d.ttft <= TTFT and (d.tpot or 0.0) <= TPOT]
    late = [at for at in came if at > end + 30]
    goodput = sum(begin <= at < end for at in good) / (end - begin)
    return goodput, sum(at > end + 30 for at in good) / len(late), refused / len(came)


def test_at_half_more_than_it_serves_a_short_queue_keeps_the_goodput() -> None:
    """The production scheduler in virtual time. A queue that is served within the TTFT target keeps nine tenths of the
    most that is ever served within both, and 30 s after the burst all is as before; one of the default length serves
    hardly anyone in time until it is."""
    found = {rate: served(rate, rate, 512)[0] for rate in (10.0, 11.0, 12.0)}
    peak, capacity = max(found.values()), max(rate for rate, goodput in found.items() if goodput >= 0.9 * rate)
    goodput, after, refused = served(6.0, 1.5 * capacity, 8)
    assert goodput >= 0.9 * peak and after >= 0.9 and refused > 0.05
    goodput, after, refused = served(6.0, 1.5 * capacity, 512)
    assert goodput < 0.5 * peak and after >= 0.9 and refused == 0.0
