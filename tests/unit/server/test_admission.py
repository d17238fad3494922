"""Readiness, back-pressure and draining on a fake clock."""

from __future__ import annotations

import pytest

from semipd_engine.ipc.messages import CoreState
from semipd_engine.server.admission import Admission
from semipd_engine.server.errors import ApiError

pytestmark = pytest.mark.unit

READY = CoreState(ready=True, state="ready")
DEGRADED = CoreState(ready=False, state="degraded", message="the decode worker is being replaced")


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
    admission.core_state(CoreState(ready=False, state="loading", message="40 % of the weights"))
    assert (status(admission), admission.not_ready_reason()) == (503, "40 % of the weights")
    admission.core_state(READY)
    assert (status(admission), admission.not_ready_reason()) == (200, None)


@pytest.mark.parametrize("outage", ["lost", "degraded"])
def test_a_short_outage_flips_nothing(admission: Admission, clock: Clock, outage: str) -> None:
    admission.core_state(READY)
    clock.now += 1
    admission.core_lost() if outage == "lost" else admission.core_state(DEGRADED)
    clock.now += 1.9
    assert (status(admission), admission.not_ready_reason()) == (200, None)
    clock.now += 0.2
    assert status(admission) == 503
    admission.core_state(READY)
    assert status(admission) == 200


def test_repeated_bad_news_does_not_stretch_the_grace(admission: Admission, clock: Clock) -> None:
    admission.core_state(READY)
    for _ in range(5):
        admission.core_state(DEGRADED)
        clock.now += 0.5
    assert status(admission) == 503


def test_a_silent_core_counts_as_away(admission: Admission, clock: Clock) -> None:
    admission.core_state(READY)
    clock.now += 6.9
    assert admission.not_ready_reason() is None
    clock.now += 0.2
    assert "silent" in str(admission.not_ready_reason())


def test_the_queue_is_bounded_by_those_who_wait(admission: Admission) -> None:
    admission.core_state(READY)
    assert [status(admission, waiting) for waiting in (3, 4)] == [200, 429]
    admission.core_state(CoreState(ready=True, state="ready", prefilling=2))
    assert [status(admission, waiting) for waiting in (5, 6)] == [200, 429]


def test_drain_fails_the_probe_first_and_admission_after_five_seconds(admission: Admission, clock: Clock) -> None:
    admission.core_state(READY)
    admission.start_drain()
    assert (status(admission), admission.not_ready_reason()) == (200, "the server is draining")
    clock.now += 4.9
    admission.core_state(READY)
    assert status(admission) == 200
    clock.now += 0.2
    assert status(admission) == 503


def test_a_draining_core_admits_nobody(admission: Admission) -> None:
    admission.core_state(READY)
    admission.core_state(CoreState(ready=True, state="draining"))
    assert (status(admission), admission.not_ready_reason()) == (503, "the server is draining")
