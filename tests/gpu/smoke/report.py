"""The smoke run's result: one record for each part, as JSON for machines and as Markdown for people."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


class Skip(Exception):
    """A part has nothing to do here; the message says why."""


@dataclass
class Part:
    name: str
    claim: str
    outcome: Outcome = Outcome.SKIPPED
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    """Tables are lists of dictionaries with the same keys."""
    problem: str = ""


@dataclass
class Report:
    device: str
    budget_seconds: float
    began: float = field(default_factory=time.monotonic)
    parts: list[Part] = field(default_factory=list)

    def run(self, name: str, claim: str, work: Callable[[dict[str, Any]], None]) -> None:
        """Do one part, whatever it raises. `work` fills in the figures as it goes, so a failure keeps what it saw."""
        part = Part(name, claim)
        self.parts.append(part)
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        try:
            if began - self.began > self.budget_seconds:
                raise Skip(f"the {self.budget_seconds:.0f} s are used up")
            work(part.figures)
            part.outcome = Outcome.OK
        except Skip as reason:
            part.problem = str(reason)
        except Exception as error:
            part.outcome, part.problem = Outcome.FAILED, f"{type(error).__name__}: {error}"
            traceback.print_exc()
        part.seconds = round(time.monotonic() - began, 2)
        print(f"    {part.outcome} after {part.seconds:.1f} s {part.problem}", flush=True)

    @property
    def ok(self) -> bool:
        return all(part.outcome is not Outcome.FAILED for part in self.parts)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = {"device": self.device, "seconds": round(time.monotonic() - self.began, 1)}
        (folder / "smoke.json").write_text(json.dumps(content | {"parts": [asdict(p) for p in self.parts]}, indent=2))
        (folder / "smoke.md").write_text(self.markdown())

    def markdown(self) -> str:
        title = "# What a GPU showed" if self.device == "cuda" else "# Dry run on the CPU: no figure here is a GPU's"
        lines = [title, "", "| part | claim | outcome | seconds |", "|---|---|---|---|"]
        lines += [f"| {p.name} | {p.claim} | {p.outcome} | {p.seconds:.1f} |" for p in self.parts]
        for part in self.parts:
            lines += ["", f"## {part.name}", ""]
            lines += [part.problem, ""] if part.problem else []
            for key, value in part.figures.items():
                lines += _table(key, value) if _is_table(value) else [f"- {key}: {value}"]
        return "\n".join(lines) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    columns = list(rows[0])
    lines = ["", f"{title}:", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows), ""]
