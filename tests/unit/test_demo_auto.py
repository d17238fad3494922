"""The Auto act's own logic, against a service of the test's: turns end when the split follows, or when time is up."""

from __future__ import annotations

import io
from collections.abc import Sequence
from threading import Event
from typing import Any

import pytest
from rich.console import Console

from bench.traffic.plan import Request
from bench.traffic.records import Record, Target
from e2e.demo.acts import auto
from e2e.demo.outcome import Outcome
from e2e.demo.service import applied
from e2e.lib.service import ready

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "LEAD", 0.0)


def decision(old: tuple[int, int], new: tuple[int, int], second: int) -> dict[str, Any]:
    def shares(split: tuple[int, int]) -> dict[str, int]:
        return {"prefillPercent": split[0], "decodePercent": split[1]}

    return {
        "time": f"2026-01-01T00:00:{second:02d}Z",
        "pod": "p-0",
        "from": shares(old),
        "to": shares(new),
        "reason": "TTFTAboveTarget",
        "metric": "ttft",
        "observedMilliseconds": 912.4,
        "targetMilliseconds": 500.0,
    }


class Scripted:
    """Its split follows `script`, one entry a read; requests are answered at once."""

    where = "in a test"

    def __init__(self, script: list[tuple[int, int]]) -> None:
        self.script, self.reads = script, 0
        self.stop: Event | None = None

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Event | None = None) -> list[Record]:
        self.stop = stop
        return [Record(0, r.label, r.at, r.at, (r.at + 0.1, r.at + 0.2), finish_reason="length") for r in plan]

    def get(self) -> dict[str, Any]:
        split = self.script[min(self.reads, len(self.script) - 1)]
        told = [decision((50, 50), split, n) for n, split in enumerate(self.script[: self.reads]) if split != (50, 50)]
        self.reads += 1
        shares = {"prefillPercent": split[0], "decodePercent": split[1]}
        return {"status": {"partition": {"applied": shares, "decisions": told[::-1]}}}

    def patch(self, spec: dict[str, Any]) -> None:
        raise AssertionError("the watch changes nothing")

    def lives(self) -> dict[str, int]:
        return {}


def watched(script: list[tuple[int, int]], longest: float) -> tuple[auto.Watch, Scripted, Outcome]:
    outcome, service = Outcome(Console(file=io.StringIO())), Scripted(script)
    watch = auto.Watch(outcome, service)
    watch.turn("long prompts", auto.prompts(5.0), longest, lambda part: part > 0.5)
    return watch, service, outcome


def test_a_turn_ends_when_the_split_follows() -> None:
    watch, service, _ = watched([(50, 50), (50, 50), (80, 40), (80, 40)], longest=30)
    assert watch.share == pytest.approx(80 / 120)
    run = watch.finish(Target(500, 50))
    assert [turn.label for turn in run.turns] == ["long prompts"]
    assert run.samples[-1].prefill == 80
    assert run.records and all(one.ttft == pytest.approx(0.1) for one in run.records)
    assert service.stop is not None and service.stop.is_set(), "the client is told to send no more"


def test_a_split_that_moves_before_the_turn_begins_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the turn before moves it; the new load has not been sent."""
    monkeypatch.setattr(auto, "LEAD", 0.7)
    watch, _, _ = watched([(80, 40), (80, 40)], longest=30)
    (turn,) = watch.finish(Target(500, 50)).turns
    assert turn.begin <= turn.end < turn.begin + 20


def test_a_turn_that_nobody_follows_ends_all_the_same() -> None:
    watch, service, _ = watched([(50, 50)], longest=1.2)
    assert watch.share == 0.5
    assert service.stop is not None and service.stop.is_set()
    assert not watch.told


def test_decisions_are_told_once_with_their_evidence() -> None:
    watch, _, _ = watched([(50, 50), (50, 50), (80, 40)], longest=30)
    for _ in range(3):
        watch.look()
    texts = [one.text for one in watch.told]
    assert texts == ["50/50 → 80/40  TTFTAboveTarget  TTFT 912 ms, target 500 ms  (p-0)"]
    assert not watch.incomplete


def test_batch_rate_is_tokens_per_second_of_all() -> None:
    class Steady(Scripted):
        def send(self, plan: Sequence[Request], start: float | None = None, stop: Event | None = None) -> list[Record]:
            return [Record(0, "", 0, 0, (1.0, 1.1, 1.2), finish_reason="length") for _ in plan]

    assert auto.batch_rate(Steady([])) == pytest.approx(auto.BURST / 0.1)


@pytest.mark.parametrize(("generation", "expected"), [(3, True), (4, False)])
def test_ready_is_about_the_spec_as_it_is(generation: int, expected: bool) -> None:
    condition = {"type": "Ready", "status": "True", "observedGeneration": 3}
    assert ready({"metadata": {"generation": generation}, "status": {"conditions": [condition]}}) is expected
    assert not ready({}) and applied({}) is None
