"""The parts of a worker's start follow each other, and add up to it."""

from __future__ import annotations

import pytest

from semipd_engine.worker.start_times import StartTimes

pytestmark = pytest.mark.unit


def test_parts_follow_each_other_and_add_up() -> None:
    times = StartTimes(iter((10.0, 10.5, 12.5, 12.5, 13.0)).__next__)
    for part in ("context", "attach", "kernels", "attach"):
        times.done(part)
    assert times.seconds == {"context": 0.5, "attach": 2.5, "kernels": 0.0}
    assert times.began_at == 10.0 and sum(times.seconds.values()) == 13.0 - times.began_at
