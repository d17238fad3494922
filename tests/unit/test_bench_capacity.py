"""`python -m bench.capacity`: the brute-force knee, and the ratio of a whole pod beside it."""

from __future__ import annotations

import math

import pytest

from bench.capacity.__main__ import WITHIN, table
from bench.capacity.knee import Case, Knee, Reading, keeps, knee, poisson, pressure, read, sped_up
from semipd_cli.simulator.engine import Arrival
from semipd_cli.simulator.workloads import Lengths
from semipd_engine.contract import Split

pytestmark = pytest.mark.unit

SHORT = Case("short", Lengths(400, 20), 400, 30, "cpu", 14.0)
SECONDS = 70.0
RATES = poisson(SHORT, SECONDS)


@pytest.fixture(scope="module")
def found() -> Knee:
    return knee(SHORT, [Split(prefill=60), Split(), Split(decode=60)], RATES, SHORT.about, SECONDS)


def test_at_the_knee_its_split_keeps_both_targets_and_none_does_beyond(found: Knee) -> None:
    splits = {str(split): split for split in (Split(prefill=60), Split(), Split(decode=60))}
    assert keeps(SHORT, splits[found.split], RATES(found.factor), SECONDS)
    assert not any(keeps(SHORT, split, RATES(1.1 * found.factor), SECONDS) for split in splits.values())


@pytest.mark.parametrize(("load", "start"), [(0.6, Split(prefill=20)), (0.9, Split())])
def test_a_pod_that_was_born_under_load_says_how_far_from_the_knee_it_is(
    found: Knee, load: float, start: Split
) -> None:
    reading = read(SHORT, load * found.factor, load, start, seed=101, seconds=160)
    assert abs(reading.error) <= WITHIN and abs(reading.young_error) <= WITHIN, reading


def test_who_is_not_served_in_time_has_missed() -> None:
    """Many times what the device can do: most are refused or still wait."""
    assert pressure(SHORT, Split(), RATES(100.0), SECONDS) == math.inf


def test_a_run_in_which_nothing_counts_is_no_knee() -> None:
    with pytest.raises(ValueError, match="do not count"):
        pressure(SHORT, Split(), RATES(1.0), 40.0)


def test_the_very_arrivals_come_faster_and_over_again() -> None:
    once = [Arrival(1.0, 10, 2), Arrival(3.0, 20, 2)]
    (twice,) = sped_up(once, 4.0, 7, 5.0)(2.0).values()
    assert [(a.at, a.prompt) for a in twice] == [(0.5, 10), (1.5, 20), (2.5, 10), (3.5, 20), (4.5, 10)]


def test_twice_as_fast_as_half_of_what_just_goes_is_what_just_goes(found: Knee) -> None:
    """The knee of a stream, in multiples of itself, is the one that is known in requests a second."""
    arrivals = RATES(found.factor / 2)[11]
    times = knee(SHORT, [Split(), Split(decode=60)], sped_up(arrivals, SECONDS, 11, SECONDS), 2.0, SECONDS)
    assert 1.5 < times.factor < 2.7


def test_a_row_tells_the_worst_starting_split() -> None:
    readings = [Reading("w", 0.6, 1, start, 0.6, ratio, ratio, ratio, 1) for start, ratio in (("a", 0.63), ("b", 0.48))]
    (row,) = zip(*(column.cells for column in table(readings).columns), strict=True)
    assert row == ("w", "0.60", "0.48 to 0.63", "-20 % from b", "+0 % from a", "1")
