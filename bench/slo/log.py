"""Every registered run of a folder, in order: begun, ended, given up. A line of JSON for each event; none goes away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BEGUN, ENDED, GIVEN_UP = "begun", "ended", "given up"


@dataclass(frozen=True)
class Entry:
    number: int
    event: str
    digest: str
    """Of the plan, SHA-256."""
    commit: str
    at: str
    """ISO 8601, UTC."""
    outcome: str = ""
    """Of a run that has ended: `verdicts.outcome`."""


def read(path: Path) -> list[Entry]:
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(entry)) + "\n")


def number(entries: Sequence[Entry]) -> int:
    """Of the run that goes on, or is to begin."""
    over = [entry.number for entry in entries if entry.event != BEGUN]
    return max(over, default=0) + 1


def last(entries: Sequence[Entry]) -> list[Entry]:
    """Of each run its latest word, in order."""
    return list({entry.number: entry for entry in entries}.values())
