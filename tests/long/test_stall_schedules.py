"""The two-sided bound against starvation in 10^5 random schedules, of which `make test` tries a thousand."""

from __future__ import annotations

import pytest
from tests.unit.test_scheduler_stall import check_schedule

pytestmark = pytest.mark.long

SCHEDULES = 100_000


def test_the_bound_holds_both_ways() -> None:
    waited, cut = map(sum, zip(*map(check_schedule, range(SCHEDULES)), strict=True))
    assert waited > SCHEDULES and cut > SCHEDULES
