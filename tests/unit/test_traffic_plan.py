"""Plans of the load client: arrivals, lengths and prompts are fixed before anything is sent."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest

from bench.traffic import plan, replay
from bench.traffic.plan import Request, TraceRow, poisson, poisson_plan, prompt_ids, prompt_text, trace_plan

pytestmark = pytest.mark.unit


def test_poisson_has_its_rate_and_its_spread() -> None:
    arrivals = list(poisson(20, 500, seed=1))
    distances = [b - a for a, b in pairwise(arrivals)]
    assert len(arrivals) == pytest.approx(10_000, rel=0.05)
    assert mean(distance > 1 / 20 for distance in distances) == pytest.approx(0.368, abs=0.03)  # e^-1
    assert arrivals == sorted(arrivals) and arrivals[-1] < 500
    assert list(poisson(20, 500, seed=2)) != arrivals


@pytest.mark.parametrize("variation", [0.5, 1.0, 2.0])
def test_gamma_has_its_rate_and_its_variation(variation: float) -> None:
    distances = [b - a for a, b in pairwise(plan.gamma(20, 500, variation=variation, seed=1))]
    assert mean(distances) == pytest.approx(1 / 20, rel=0.06)
    assert stdev(distances) / mean(distances) == pytest.approx(variation, rel=0.06)


def test_a_mixed_plan_keeps_to_its_bounds() -> None:
    found = plan.mixed_plan(poisson(20, 50, seed=1), prompt_tokens=(3, 5), max_tokens=(7, 9), seed=1)
    assert {len(request.prompt) for request in found} == {3, 4, 5}
    assert {request.max_tokens for request in found} == {7, 8, 9}
    assert [request.at for request in found] == list(poisson(20, 50, seed=1))


def test_prompts_differ_within_a_plan_and_repeat_with_the_seed() -> None:
    requests = poisson_plan(5, 10, prompt_tokens=32, max_tokens=4, seed=3)
    assert len({request.prompt for request in requests}) == len(requests)
    assert requests == poisson_plan(5, 10, prompt_tokens=32, max_tokens=4, seed=3)
    assert all(len(request.prompt) == 32 for request in requests)
    assert all(token in range(10, 20) for token in prompt_ids(100, seed=0, vocabulary=range(10, 20)))


def test_trace_keeps_its_bursts_and_caps_its_lengths() -> None:
    rows = [TraceRow(at, 400 * number, 10) for number, at in enumerate((0.0, 1.0, 1.5, 9.0, 10.0), 1)]
    found = trace_plan(rows, rate=1, seconds=5, length_scale=0.5, max_prompt=700, max_output=4, start=100)
    assert [len(request.prompt) for request in found] == [200, 400, 600, 700, 700]
    assert {request.max_tokens for request in found} == {4}
    times = [request.at - 100 for request in found]
    assert times[0] == 0 and times[-1] == pytest.approx(4.0)
    assert times[1] / times[-1] == pytest.approx(0.1) and times[3] / times[-1] == pytest.approx(0.9)


def test_trace_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"t_s,input_tokens,output_tokens\n0.0,374,44\n4.5,396,109\n"))
    assert plan.read_trace(path) == [TraceRow(0.0, 374, 44), TraceRow(4.5, 396, 109)]


@pytest.mark.parametrize("name", ["azure2023_conv", "azure2023_code"])
def test_shipped_traces_make_a_plan(name: str) -> None:
    rows = plan.read_trace(plan.TRACES / f"{name}.csv.gz")
    found = trace_plan(rows, rate=2, seconds=60, length_scale=0.25, seed=7)
    assert len(found) == 120 and found[-1].at < 60
    assert max(len(request.prompt) for request in found) <= 1_024


class Words:
    """One token for each word, except that the pair "a b" is one token: a cut can change the count."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {0: "a"}

    def encode(self, text: str) -> list[int]:
        words = text.replace("a b", "ab").split()
        self.known = dict(enumerate(dict.fromkeys([*self.known.values(), *words])))
        index = {word: number for number, word in self.known.items()}
        return [index[word] for word in words]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.known[number] for number in ids)


def test_text_prompt_has_the_count_asked_for() -> None:
    encoder = Words()
    text = prompt_text(40, encoder, seed=1, words=["a", "b", "c"])
    assert len(encoder.encode(text)) == 40


class OneToken(Words):
    def encode(self, text: str) -> list[int]:
        return [0]


def test_text_prompt_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(ValueError, match="no text of exactly 3"):
        prompt_text(3, OneToken(), seed=1)


def test_requests_are_checked_and_survive_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompt or messages"):
        Request(0.0, 1)
    with pytest.raises(ValueError, match="max_tokens"):
        Request(0.0, 0, "x")
    for bad in ({"hang_up": 0.0}, {"hang_up": float("nan")}, {"not_after": 1.0}, {"after": -1}, {"outlasts": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Request(2.0, 1, "x", **bad)  # type: ignore[arg-type]
    requests = [plan.ask("why?"), Request(1.0, 3, (1, 2, 3), seed=4), Request(2.0, 1, "text")]
    plan.write(requests, tmp_path / "p.jsonl")
    assert plan.read(tmp_path / "p.jsonl") == requests


async def test_a_plan_whose_requests_wait_for_each_other_is_refused() -> None:
    """It would never end."""
    for after in (1, 2, 7):
        with pytest.raises(plan.PlanError, match=f"request 1: after: {after}"):
            await replay([Request(0.0, 1, "x"), Request(0.0, 1, "y", after=after)], "http://127.0.0.1:9", model="m")
    for other in (1, 2):
        with pytest.raises(plan.PlanError, match=f"request 1: outlasts: {other}"):
            await replay([Request(0.0, 1, "x"), Request(0.0, 1, "y", outlasts=other)], "http://127.0.0.1:9", model="m")
