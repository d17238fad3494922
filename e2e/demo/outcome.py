"""What the demo has found so far: checks, timings, the report's material. Knows no engine and no cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from rich.console import Console
from rich.markup import escape

from bench.traffic.client import ServerError
from bench.traffic.records import Record, Target
from e2e.demo.lanes import Scene
from e2e.lib.kube import ROOT, KubeError
from e2e.lib.process import NotRunning
from e2e.lib.waiting import NotInTime

OUT, REPORT = ROOT / "out" / "demo", ROOT / "demo-report.html"
"""Logs, and the page at the end."""


class DemoError(Exception):
    """A step failed; the text says which and what to look at."""


class Abandoned(Exception):
    """An act failed and said so; the form that it belongs to ends here."""


FAILURES = (DemoError, KubeError, NotRunning, NotInTime, ServerError, httpx.HTTPError)
"""What ends an act, and is told in its own words."""


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Timing:
    act: str
    seconds: float


@dataclass(frozen=True)
class Sample:
    """The split at one moment; `at` in seconds since the load began, shares in percent."""

    at: float
    prefill: int
    decode: int


@dataclass(frozen=True)
class Turn:
    """A stretch of the load with one character."""

    label: str
    begin: float
    end: float


@dataclass(frozen=True)
class Decided:
    """A decision of the controller as the status tells it."""

    at: float
    text: str


@dataclass(frozen=True)
class AutoRun:
    """The Auto act: the load's turns, the split over time, each request against the targets."""

    where: str
    target: Target
    turns: tuple[Turn, ...]
    samples: tuple[Sample, ...]
    records: tuple[Record, ...]
    decisions: tuple[Decided, ...]


@dataclass
class Outcome:
    """Grows act by act. An act that raises becomes a FAIL line."""

    console: Console
    mode: str = "embedded"
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    auto_runs: list[AutoRun] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    transcript: list[tuple[str, str]] = field(default_factory=list)
    """(command or question, output) pairs worth keeping in the report."""
    started: float = field(default_factory=time.monotonic)

    def check(self, name: str, ok: bool, detail: str = "") -> bool:
        self.checks.append(Check(name, ok, detail))
        colour, word = ("green", "PASS") if ok else ("red", "FAIL")
        said = f" [dim]({escape(detail)})[/]" if detail else ""  # a program's own words may hold brackets
        self.console.print(f"  [bold {colour}]{word}[/] {escape(name)}{said}")
        return ok

    @contextmanager
    def act(self, title: str) -> Iterator[None]:
        """Raises Abandoned where the act failed: what comes after it in the same form needs it."""
        began = time.monotonic()
        self.console.print()
        self.console.rule(f"[bold]{title}[/] [dim]at {clock(began - self.started)}[/]", align="left")
        try:
            yield
        except FAILURES as problem:
            self.check(title, False, str(problem))
            raise Abandoned from None
        finally:
            self.timings.append(Timing(title, time.monotonic() - began))

    @property
    def failed(self) -> bool:
        return not self.checks or any(not check.ok for check in self.checks)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
