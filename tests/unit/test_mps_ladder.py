"""Rungs and SM counts: what a percentage may look like from inside, and which splits the ladder can express."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd_agent.partitioner.mps.ladder import GRANULE, LADDER, WHOLE, implausible, nearest, plausible, quantize
from semipd_engine.contract import Split

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def test_few_rungs_that_end_at_the_whole_device() -> None:
    assert 5 <= len(LADDER) <= 8
    assert sorted(LADDER) == list(LADDER) and LADDER[-1] == WHOLE


@given(st.integers(1, 100))
def test_the_nearest_rung(percent: int) -> None:
    rung = nearest(percent)
    assert rung in LADDER
    assert all(abs(rung - percent) <= abs(other - percent) for other in LADDER)
    assert nearest(rung) == rung


@pytest.mark.parametrize(("want", "rung"), [(1, 10), (15, 20), (69, 60), (70, 80), (90, 100), (94, 100)])
def test_of_two_equally_near_the_larger(want: int, rung: int) -> None:
    assert nearest(want) == rung


def test_phases_are_rounded_each_for_itself() -> None:
    assert quantize(Split(prefill=72, decode=33)) == Split(prefill=80, decode=30)


@pytest.mark.parametrize(
    ("total", "percent", "seen", "good"),
    [
        (188, 50, 94, True),  # these three were seen by others on a GPU
        (188, 25, 46, True),
        (188, 10, 18, True),
        (132, 80, 104, True),
        (132, 80, 132, False),  # outside of MPS
        (132, 80, 106, False),  # rounded up: no
        (132, 50, 58, False),  # a ceiling of another daemon lies above it
        (132, 100, 132, True),
        (132, 100, 66, False),
        (20, 10, 2, True),
        (16, 10, 2, True),  # not below one pair
        (132, 10, 0, False),
    ],
)
def test_a_count_speaks_for_or_against_its_limit(total: int, percent: int, seen: int, good: bool) -> None:
    assert plausible(total, percent, seen) is good


@given(st.integers(8, 300).map(lambda n: 2 * n), st.sampled_from([2, 4, 8]))
def test_whole_granules_rounded_down_are_plausible_on_every_rung(total: int, granule: int) -> None:
    counts = {p: max(2, granule * (total * p // (100 * granule))) for p in LADDER} | {WHOLE: total}
    assert granule <= GRANULE
    assert implausible(total, counts) is None


def test_an_ineffective_limit_is_named() -> None:
    counts = dict.fromkeys(LADDER, 132)
    said = implausible(132, counts)
    assert said is not None and "10 %" in said and "132 of 132" in said


@pytest.mark.parametrize("name", ["docs/controller.md", "docs/crd.md", "docs/design/0004-mps.md"])
def test_the_documents_name_the_rungs(name: str) -> None:
    assert ", ".join(map(str, LADDER)) in (ROOT / name).read_text()
