"""``python -m bench.capacity``: what the agent's ratio says, beside what some split really just serves.

Writes OUT/capacity.json as it goes; one that is broken off goes on with the same command: a knee holds while the
engine, the simulator and the case are the same, a reading while the agent's policies are, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench import kept
from bench.capacity.knee import CASES, LOADS, STARTS, Case, Knee, Reading, read, room
from bench.study.plan import code
from bench.usage import folder, minutes
from semipd_engine.contract import Split
from semipd_engine.usage import Parser

SEEDS = (101, 102, 103)
WITHIN = 0.15


class Kept:
    """What was found, on disk."""

    def __init__(self, path: Path) -> None:
        self._path, now = path, code()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._told = kept.read(path)
        if self._told.get("engine") != now.engine:
            self._told = {"engine": now.engine, "knees": {}}
        if self._told.get("policies") != now.policies:
            self._told |= {"policies": now.policies, "readings": {}}

    def knee(self, case: Case, load: float, seed: int) -> Knee:
        key = f"{case} at {load:g}, seed {seed}"
        if key not in self._told["knees"]:
            self._told["knees"][key] = asdict(room(case, load, seed))
            self._write()
        return Knee(**self._told["knees"][key])

    def reading(self, case: Case, load: float, start: Split, seed: int) -> Reading:
        key = f"{case} at {load:g} from {start}, seed {seed}"
        if key not in self._told["readings"]:
            truth = 1 / self.knee(case, load, seed).factor
            self._told["readings"][key] = asdict(read(case, load * case.about, truth, start, seed))
            self._write()
        return Reading(**self._told["readings"][key])

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._told, indent=1) + "\n")


def table(readings: Sequence[Reading]) -> Table:
    """One row for each workload and stream of arrivals: the worst starting split counts."""
    shown = Table("workload", "load (brute force)", "ratio", "worst error", "born under load", "moves")
    for name, load, seed in dict.fromkeys((r.case, r.load, r.seed) for r in readings):
        mine = [r for r in readings if (r.case, r.load, r.seed) == (name, load, seed)]
        worst = max(mine, key=lambda r: abs(r.error))
        young = max(mine, key=lambda r: abs(r.young_error))
        shown.add_row(
            name,
            f"{load:.2f}",
            f"{min(r.settled for r in mine):.2f} to {max(r.settled for r in mine):.2f}",
            f"{100 * worst.error:+.0f} % from {worst.start}",
            f"{100 * young.young_error:+.0f} % from {young.start}",
            f"{max(r.moves for r in mine)}",
        )
    return shown


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 1 where a settled ratio is further from the truth than `WITHIN`."""
    parser = Parser(prog="python -m bench.capacity", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--workload", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument("--load", type=float, action="append", choices=LOADS, help="only this one; repeatable")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1), help="so many")
    parser.add_argument("--minutes", type=minutes, default=60.0, help="begin nothing after so long")
    parser.add_argument("--out", type=folder, default=Path("out/capacity"), help="folder of capacity.json")
    options = parser.parse_args(words)
    cases = [case for case in CASES if not options.workload or case.name in options.workload]
    found, until = Kept(options.out / "capacity.json"), time.monotonic() + 60 * options.minutes
    todo = [
        (case, load, start, seed)
        for seed in SEEDS[: options.seeds]
        for case in cases
        for load in options.load or LOADS
        for start in STARTS
    ]
    readings = list[Reading]()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("capacity", total=len(todo))
        for case, load, start, seed in todo:
            if time.monotonic() > until:
                print("not all is played: the same command goes on", file=sys.stderr)
                break
            progress.update(task, description=f"{case.name} at {load:g} from {start}")
            readings.append(found.reading(case, load, start, seed))
            progress.advance(task)
    if not readings:
        return 1
    Console(width=None if sys.stdout.isatty() else 140).print(table(readings))
    worst = max(readings, key=lambda r: abs(r.error))
    within = sum(abs(r.error) <= WITHIN for r in readings)
    print(f"{within} of {len(readings)} within {WITHIN:.0%}; the worst is {100 * worst.error:+.0f} %: {worst}")
    return 1 if within < len(readings) else 0


if __name__ == "__main__":
    sys.exit(main())
