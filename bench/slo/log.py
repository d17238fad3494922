"""Every registered run of a folder, in order: begun, ended, given up. A line of JSON for each event; none goes away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BEGUN, ENDED, GIVEN_UP = "begun", "ended", "given up"
UNREADABLE = "half a line"
"""The event of a line that registered a run, and that a kill left half written: only the run's number is known."""


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
    """What registers a run is an entry even where its line is no whole one (`UNREADABLE`): no run is on its way then,
    so the line can say nothing else. Another such line is none: the word before it holds, and going on says it anew."""
    found = list[Entry]()
    lines = path.read_text().splitlines() if path.exists() else []
    for line in filter(str.strip, lines):
        try:
            found.append(Entry(**json.loads(line)))
        except (ValueError, TypeError):
            if not found or found[-1].event in (ENDED, GIVEN_UP):
                found.append(Entry(number(found), UNREADABLE, "", "", ""))
    return found


def append(path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")  # a kill has left half a line: it must not swallow this one
        file.write(json.dumps(asdict(entry)).encode() + b"\n")


def number(entries: Sequence[Entry]) -> int:
    """Of the run that goes on, or is to begin."""
    over = [entry.number for entry in entries if entry.event in (ENDED, GIVEN_UP)]
    return max(over, default=0) + 1


def last(entries: Sequence[Entry]) -> list[Entry]:
    """Of each run its latest word, in order."""
    return list({entry.number: entry for entry in entries}.values())
