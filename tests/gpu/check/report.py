"""What the check found: a JSON file for each part, written while it runs, and one page made of all of them.

Standard library only: the run itself must not depend on what it is about to find out.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.gpu.check.plots import plots, section

WRITE_SECONDS = 0.5


class Outcome(StrEnum):
    RUNNING = "running"
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    TIMED_OUT = "timed out"
    INTERRUPTED = "interrupted"
    NO_GPU = "no GPU"


class Skip(Exception):
    """A part has nothing to do here; the message says why."""


@dataclass
class Record:
    name: str
    claim: str
    outcome: Outcome = Outcome.SKIPPED
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    """Tables are lists of dictionaries with the same keys."""
    problem: str = ""

    def write(self, path: Path) -> None:
        """Whole or not at all: somebody may read it now, or kill us."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=2, default=str))
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """None: there is none, or it is not whole."""
        try:
            fields = json.loads(path.read_text())
            return cls(**fields | {"outcome": Outcome(fields["outcome"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


class Keeping:
    """Writes a record again and again while its part runs: one that hangs and is killed keeps its figures."""

    def __init__(self, record: Record, path: Path) -> None:
        self._record, self._path = record, path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._record.write(self._path)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._record.write(self._path)

    def _run(self) -> None:
        while not self._over.wait(WRITE_SECONDS):
            try:
                self._record.write(self._path)
            except RuntimeError:  # a figure came in between: next time
                continue


@dataclass(frozen=True)
class Call:
    """What a report says of the call that made it."""

    circumstances: Mapping[str, str]
    """Device, commit and versions, of all records."""
    seconds: float
    earlier: frozenset[str] = frozenset()
    """Parts that it left alone: their records are those of a call before it."""
    interrupted: str = ""
    """The signal that ended it."""


Rows = list[dict[str, Any]]


def write_report(out: Path, records: list[Record], call: Call, promised: Rows, predicted: Rows, sha256: str) -> str:
    """``report.md``, pictures and ``report.json`` in `out`. `sha256`: of the predictions. The page. Raises OSError."""
    plots(records, _of_gpu(call, predicted), out)
    page = markdown(records, call, promised, predicted)
    (out / "report.md").write_text(page)
    parts = [asdict(record) | {"of an earlier call": record.name in call.earlier} for record in records]
    content: dict[str, Any] = {key: call.circumstances[key] for key in ("device", "commit")}
    content |= {"seconds": round(call.seconds, 1), "interrupted": call.interrupted, "parts": parts}
    content |= {"circumstances": dict(call.circumstances), "predictions": sha256}
    content |= {"promised": promised, "predicted": predicted}
    (out / "report.json").write_text(json.dumps(content, indent=2, default=str))
    return page


def markdown(records: list[Record], call: Call, targets: Rows, steps: Rows) -> str:
    """One page: the parts, what was promised and predicted beside what was measured (`verdicts`), and each part."""
    device = call.circumstances["device"]
    lines = [f"# {_title(records, device)}", "", f"{call.seconds:.0f} seconds in all."]
    if call.interrupted:
        lines += [f"Interrupted by {call.interrupted}: not all parts ran; `--resume` goes on."]
    if call.earlier:
        lines += ["Parts of an earlier call did not run now; device, commit and versions were the same."]
    lines += ["", "; ".join(f"{key} {value}" for key, value in call.circumstances.items()) + ".", ""]
    lines += ["| part | claim | outcome | seconds | why |", "|---|---|---|---|---|"]
    for r in records:
        why = "; ".join(filter(None, ("of an earlier call" if r.name in call.earlier else "", _line(r.problem))))
        lines += [f"| {r.name} | {r.claim} | {r.outcome} | {r.seconds:.1f} | {why} |"]
    if device == "cuda":
        lines += ["", "## What was promised", *_table("", targets), "## What was predicted", *_table("", steps)]
    lines += section(records, _of_gpu(call, steps))
    for record in (one for one in records if one.figures or "\n" in one.problem):
        lines += ["", f"## {record.name}", ""]
        lines += [record.problem, ""] if record.problem else []
        for key, value in record.figures.items():
            lines += _table(key, value) if _is_table(value) else [f"- {key}: {value}"]
    return "\n".join(lines) + "\n"


def _of_gpu(call: Call, steps: Rows) -> Rows:
    """A dry run's steps are those of other models."""
    return steps if call.circumstances["device"] == "cuda" else []


def _title(records: list[Record], device: str) -> str:
    outcomes = {record.outcome for record in records}
    if device == "cpu":
        return "Dry run on the CPU: no figure here is a GPU's"
    if Outcome.OK in outcomes or (outcomes - {Outcome.SKIPPED} and Outcome.NO_GPU not in outcomes):
        return "What a GPU showed"
    return "No GPU here: nothing was measured" if Outcome.NO_GPU in outcomes else "No part ran: nothing was measured"


def _line(text: str) -> str:
    """The first of a text's, for a table."""
    return text.partition("\n")[0].replace("|", "/")


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    heading = [f"{title}:", ""] if title else []
    lines = ["", *heading, "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows), ""]
