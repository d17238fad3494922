"""Readiness, back-pressure and draining on a fake clock."""

from __future__ import annotations

import pytest

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
