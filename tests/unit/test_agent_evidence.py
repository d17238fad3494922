"""What counts as evidence for a policy: misses and demand beyond chance, and the share that a split gives a phase."""

from __future__ import annotations

import pytest

from semipd_agent.slo.evidence import Demand, Sample, tail
from semipd_agent.slo.policy import decode_share, prefill_share
from semipd_engine.contract import Split

pytestmark = pytest.mark.unit


def test_binomial_tail() -> None:
    assert tail(0, 10, 0.1) == pytest.approx(1.0)
    assert tail(1, 10, 0.1) == pytest.approx(1 - 0.9**10)
    assert tail(10, 10, 0.1) == pytest.approx(1e-10, abs=1e-12)


@pytest.mark.parametrize(("misses", "n", "failed"), [(1, 10, False), (5, 10, False), (6, 10, True), (14, 50, True)])
def test_chance_is_no_failure(misses: int, n: int, failed: bool) -> None:
    sample = Sample((2.0,) * misses + (0.5,) * (n - misses), 1.0, 90)
    assert sample.failed is failed


def test_demand_falls_clearly_only_beyond_chance() -> None:
    steady = Demand.of([1000] * 60)
    assert Demand.of([1000] * 20).clearly_below(steady, 0.75, 2.5)
    assert not Demand.of([1000] * 50).clearly_below(steady, 0.75, 2.5)
    assert not Demand.of([1000] * 1).clearly_below(Demand.of([1000] * 4), 0.75, 2.5)


@pytest.mark.parametrize(
    ("split", "prefill", "decode"),
    [((100, 100), 0.5, 0.5), ((30, 70), 0.3, 0.7), ((20, 30), 0.2, 0.3), ((100, 25), 0.8, 0.2)],
)
def test_shares(split: tuple[int, int], prefill: float, decode: float) -> None:
    s = Split(prefill=split[0], decode=split[1])
    assert (prefill_share(s), decode_share(s)) == (pytest.approx(prefill), pytest.approx(decode))
