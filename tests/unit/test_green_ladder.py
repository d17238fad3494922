"""Which groups of SMs a rung has, by arithmetic: what the phases share, and what a device is too coarse for."""

from __future__ import annotations

import pytest

from semipd_agent.partitioner.mps import green
from semipd_agent.partitioner.mps.ladder import LADDER
from semipd_engine.contract import Phase
from semipd_engine.green.ladder import WHOLE, Line, parsed

pytestmark = pytest.mark.unit

H100 = Line((8,) * 16 + (4,))
A100 = Line((4,) * 27)
CARDS = pytest.mark.parametrize(
    "line", [H100, A100, Line((8,) * 18), Line((2,) * 20 + (1,))], ids=lambda line: line.total
)


def test_on_an_h100_each_rung_is_within_half_a_group_of_its_percentage() -> None:
    assert [H100.sms(Phase.PREFILL, p) for p in LADDER] == [16, 24, 40, 56, 64, 80, 104, 132]
    assert [H100.sms(Phase.DECODE, p) for p in LADDER] == [12, 28, 36, 52, 68, 76, 108, 132]
    assert all(abs(H100.sms(phase, p) - 1.32 * p) <= 4 for phase in Phase for p in LADDER)


@CARDS
def test_shares_that_add_up_to_the_device_leave_no_sm_over_and_share_none(line: Line) -> None:
    everything = list(range(len(line.sizes)))
    for x in range(1, 100):
        assert [*line.groups(Phase.PREFILL, x), *line.groups(Phase.DECODE, 100 - x)] == everything


@CARDS
def test_less_than_the_device_is_apart_and_more_of_it_shares_what_is_in_the_middle(line: Line) -> None:
    for x in LADDER:
        for y in LADDER:
            both = set(line.groups(Phase.PREFILL, x)) & set(line.groups(Phase.DECODE, y))
            assert not both if x + y <= 100 else x + y < 130 or both


def test_the_whole_rung_has_every_group() -> None:
    assert all(H100.groups(phase, 100) == range(17) for phase in Phase)
    assert WHOLE == green.number(100) == 0


def test_a_device_of_few_groups_has_few_rungs_and_says_which_it_lacks() -> None:
    assert H100.coarse(green.PERCENTS) == A100.coarse(green.PERCENTS) == {}
    coarse = Line((8,) * 4).coarse(green.PERCENTS)
    assert set(coarse) == {10, 30, 50, 60} and coarse[10] == "10 % is no rung of its own in 4 groups of up to 8 SMs"
    assert set(Line((8,)).coarse(green.PERCENTS)) == set(Line(()).coarse(green.PERCENTS)) == set(green.PERCENTS)


def test_agent_and_worker_number_the_rungs_alike() -> None:
    held = dict(enumerate(parsed(green.TEXT), start=1))
    assert held == {green.number(percent): percent for percent in green.PERCENTS}
    assert [green.percent_of(green.number(percent)) for percent in LADDER] == list(LADDER)


@pytest.mark.parametrize("text", ["0,20", "20,100", "40,20", "20,20", "20, 40", "a", "20,,40"])
def test_a_ladder_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"SEMIPD_GREEN_RUNGS=.*percentages from 1 to 99"):
        parsed(text)
