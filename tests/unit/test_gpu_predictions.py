"""Predictions registered before the first run on a GPU are those of the engine as it is, and can be believed."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from bench.gpu.curves import beside
from bench.gpu.estimate import CARDS, Cost, Limits
from bench.gpu.models import CASES, CONFIGS, Shape
from bench.gpu.predictions import FILE, SHARES, digest, model
from semipd_engine.kernels import Rates
from semipd_engine.model.stage import Work

pytestmark = pytest.mark.unit


@cache
def registered() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def test_nobody_has_changed_a_figure() -> None:
    assert registered()["sha256"] == digest(registered())
    assert set(registered()["models"]) == set(CONFIGS)


@pytest.mark.parametrize("name", ["1B", "8B"])
def test_they_are_what_the_engine_does_today(name: str) -> None:
    """If not: `make gpu-predictions`, in the change that changes the step."""
    described, costs = model(name)
    assert described == registered()["models"][name]
    if name == "8B":
        assert beside(costs) == registered()[SHARES]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_faster_than_its_floor(name: str, card: str, case: str) -> None:
    ms = registered()["models"][name]["cases"][case]["ms"][card]
    assert ms["floor"] < ms["in a graph"] <= ms["expected"]


def test_a_decode_step_reads_all_weights_and_each_context() -> None:
    """By hand, for the 8 B: seven eighths of its weights are read (the embedding is looked up), and 2,048 positions of
    32 layers with keys and values of 8 heads of 128."""
    found = registered()["models"]["8B"]
    embedding, each = 128256 * 4096 * 2, 2048 * 32 * 2 * 8 * 128 * 2
    weights = found["weight bytes"] - embedding
    for batch in (1, 16, 64):
        nbytes = found["cases"][f"decode {batch}"]["bytes"]
        assert weights + batch * each < nbytes < 1.02 * (weights + batch * each) + batch * 4_000_000


def test_a_prompt_computes_two_flops_for_each_weight_and_token() -> None:
    found = registered()["models"]["8B"]
    head = 128256 * 4096
    weights = found["weight bytes"] / 2 - 2 * head
    scores = Shape(1, 2048, 2048).visible * 32 * 4096 * 4
    wanted = 2 * 2048 * weights + 2 * head + scores
    assert abs(found["cases"]["prefill 2048"]["flops"] / wanted - 1) < 0.001


def test_the_estimator_by_hand() -> None:
    cost = Cost([Work(read=100), Work(read=10, products=400), Work(scores=30)], launches=4, more=20)
    rates = Rates(read=10.0, products=20.0, gathered=1.0, scores=3.0, latent=1.0)
    assert (cost.nbytes, cost.flops) == (130, 860)
    assert Limits(rates, launch=1.0, step=0.5, queued=False).seconds(cost) == 10 + 20 + 10 + 2 + 4 + 0.5
    assert Limits(rates, launch=1.0, step=0.5).seconds(cost) == 42.5
    assert Limits(rates, launch=20.0, step=0.5).seconds(cost) == 80.5, "the host cannot queue faster"


def test_published_curves_stand_beside_ours() -> None:
    """Decode within a quarter of what others measured on half of the SMs. Prefill is not: it stands there as a miss."""
    rows = registered()[SHARES]
    half = [row for row in rows if 0.45 < row["share"] < 0.55 and "decode" in row["curve"]]
    assert len(half) == 3
    assert all(abs(row["ours"] / row["theirs"] - 1) < 0.25 for row in half), half
