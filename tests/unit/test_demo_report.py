"""The report is one file that holds everything and says FAIL when something failed."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from bench.traffic.records import Record, Target
from e2e.demo.lanes import Scene
from e2e.demo.outcome import Abandoned, AutoRun, Decided, DemoError, Outcome, Sample, Turn
from e2e.demo.report import render

pytestmark = pytest.mark.unit

VOID = {"meta", "link", "br", "img", "hr"}


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outcome() -> Outcome:
    found = Outcome(Console(file=io.StringIO()), mode="cluster", facts={"CPU": "a <fast> one", "cores": "2"})
    stream = tuple(0.02 * number for number in range(200))
    found.scenes = [Scene("one process", ((0.0, 0.1, 0.2, 1.9, 2.0),) * 4, 2_000, 0.3, 1.9)]
    found.scenes.append(replace(found.scenes[0], title="split", streams=(stream,) * 4))
    found.auto_runs = [
        AutoRun(
            where="cluster",
            target=Target(800, 90),
            turns=(Turn("long prompts", 0, 20), Turn("long answers", 20, 40)),
            samples=(Sample(0, 100, 100), Sample(12, 80, 40), Sample(31, 30, 90)),
            records=(Record(0, "", 2.5, 2.5, (3.0, 3.04)), Record(1, "", 8, 8, (9.2,)), Record(2, "", 35, 35)),
            decisions=(Decided(12, "100/100 -> 80/40 TTFTAboveTarget"),),
        )
    ]
    found.transcript = [("What is the capital of France?", "The capital of France is Paris.")]
    found.check("the model answers", True, "Paris")
    return found


def test_the_page_is_whole_and_self_contained() -> None:
    page = render(outcome(), seconds=130, date="2026-01-01 12:00")
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.seen.count("svg") == 3, "two lane pictures and the Auto plot"
    assert not re.search(r'(?:src|href)="(?!#)[^"]', re.sub(r'xlink:href="#', "", page)), "loads nothing"
    assert "a &lt;fast&gt; one" in page and "<fast>" not in page
    for text in (
        "mode=cluster",
        "PASS",
        "2:10 minutes",
        "TTFTAboveTarget",
        "1700 ms",
        "The capital of France is Paris.",
    ):
        assert text in page
    assert "FAIL" not in page


def test_a_failed_check_fails_the_page() -> None:
    found = outcome()
    found.check("greedy ids equal", False, "prompt 3 differs at token 7")
    page = render(found, seconds=1, date="")
    assert found.failed and "FAIL" in page and "prompt 3 differs at token 7" in page


def test_no_check_at_all_is_a_failure() -> None:
    assert Outcome(Console(file=io.StringIO())).failed


def test_a_program_may_say_anything() -> None:
    shown = io.StringIO()
    words = 'could not find "netavark" in one of [/usr/lib/podman [bold]]'
    Outcome(Console(file=shown, width=200)).check("images [/]", False, words)
    assert words in shown.getvalue()
    assert "images [/]" in shown.getvalue()


def test_an_act_that_raises_is_a_failed_check_and_the_next_one_runs() -> None:
    found = outcome()
    with pytest.raises(Abandoned), found.act("the cluster comes up"):
        raise DemoError("etcd did not start")
    with found.act("the next one"):
        found.check("something else", True)
    assert found.failed
    assert [(check.name, check.ok) for check in found.checks[-2:]] == [
        ("the cluster comes up", False),
        ("something else", True),
    ]
    assert [timing.act for timing in found.timings] == ["the cluster comes up", "the next one"]


def test_an_empty_outcome_still_renders() -> None:
    assert "mode=embedded" in render(Outcome(Console(file=io.StringIO())), seconds=0, date="")
