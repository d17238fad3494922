"""Algorithm 1's latency models: what is fitted, what the prior says meanwhile, and what is forgotten."""

from __future__ import annotations

import random

import pytest

from semipd_agent.slo.latency_models import TPOT_PRIOR, TTFT_PRIOR, LatencyModel

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_finds_the_parameters_of_synthetic_data(seed: int) -> None:
    """Both formulas, 5 % noise, eight shares: parameters within 10 %. lambda is known from the load."""
    rng = random.Random(seed)
    ttft, tpot = LatencyModel(TTFT_PRIOR), LatencyModel(TPOT_PRIOR)
    ttft.pole = 0.25
    for i in range(240):
        share = (0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9)[i % 8]
        ttft.add(share, (0.68 / (share - 0.25) + 0.3) * rng.gauss(1, 0.05))
        tpot.add(share, (0.63 / share + 0.38) * rng.gauss(1, 0.05))
    assert ttft.fitted is not None and tpot.fitted is not None
    assert ttft.fitted.a == pytest.approx(0.68, rel=0.10)
    assert tpot.fitted.a == pytest.approx(0.63, rel=0.10)
    assert tpot.fitted.b == pytest.approx(0.38, rel=0.10)
    for share in (0.35, 0.5, 0.75):
        assert ttft.fitted.at(share) == pytest.approx(0.68 / (share - 0.25) + 0.3, rel=0.10)


def test_with_one_share_the_prior_is_anchored_at_the_observation() -> None:
    model = LatencyModel(TPOT_PRIOR)
    for _ in range(50):
        model.add(0.5, 0.08)
    assert model.fitted is None
    assert model.estimate(0.5, current=0.5, observed=0.08) == pytest.approx(0.08)
    expected = 0.08 * TPOT_PRIOR.at(0.25) / TPOT_PRIOR.at(0.5)
    assert model.estimate(0.25, current=0.5, observed=0.08) == pytest.approx(expected)


def test_data_that_rises_with_the_share_is_not_believed() -> None:
    model = LatencyModel(TTFT_PRIOR)
    for i in range(30):
        share = 0.3 + 0.02 * i
        model.add(share, share)
    assert model.fitted is None
    assert model.estimate(0.8, current=0.5, observed=1.0) < 1.0


def test_forgetting_follows_a_change() -> None:
    model = LatencyModel(TPOT_PRIOR)
    for scale in (1.0, 3.0):
        for i in range(200):
            share = (0.3, 0.5, 0.7, 0.9)[i % 4]
            model.add(share, scale * (0.6 / share + 0.4))
    assert model.fitted is not None and model.fitted.a == pytest.approx(1.8, rel=0.1)


def test_the_priors_pole_is_the_load() -> None:
    """A nearly idle prefill has no queue to shorten: a larger share helps little. Near its limit it helps much."""
    idle, busy = LatencyModel(TTFT_PRIOR), LatencyModel(TTFT_PRIOR)
    idle.pole, busy.pole = 0.02, 0.45
    gains = [model.estimate(1.0, current=0.55, observed=1.0) for model in (idle, busy)]
    assert gains[1] < 0.3 < gains[0]
