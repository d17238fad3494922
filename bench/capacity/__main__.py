"""``python -m bench.capacity``: what the agent's ratio says at parts of the load that some split really just serves.

Writes OUT/capacity.json as it goes; one that is broken off goes on with the same command: a knee holds while the
engine, the simulator and the case are the same, a reading while the agent's policies are, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.capacity.knee import (
    CASES,
    LOADS,
    PLAYED_SECONDS,
    PRECISION,
    STARTS,
    Case,
    Knee,
    Reading,
    in_reach,
    knee,
    on_average,
    read,
)
from bench.capacity.knee import SEEDS as KNEE_SEEDS
from bench.study.plan import code
from semipd_engine.contract import Split

SEEDS = (101, 102, 103)
"""Of the arrivals of the pods that are asked; the knee has others."""
WITHIN = 0.15


class Kept:
    """What was found, on disk."""

    def __init__(self, path: Path) -> None:
        self._path, now = path, code()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if self._told.get("engine") != now.engine:
            self._told = {"engine": now.engine, "knees": {}}
        if self._told.get("policies") != now.policies:
            self._told |= {"policies": now.policies, "readings": {}}

    def knee(self, case: Case) -> Knee | None:
        found = self._told["knees"].get(_edge(case))
        return Knee(**found) if found else None

    def reading(self, case: Case, load: float, start: Split, seed: int) -> Reading | None:
        found = self._told["readings"].get(_key(case, load, start, seed))
        return Reading(**found) if found else None

    def found(self, case: Case, knee: Knee) -> None:
        self._told["knees"][_edge(case)] = asdict(knee)
        self._write()

    def said(self, case: Case, seed: int, reading: Reading, start: Split) -> None:
        self._told["readings"][_key(case, reading.load, start, seed)] = asdict(reading)
        self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._told, indent=1) + "\n")


def _edge(case: Case) -> str:
    return repr((case, KNEE_SEEDS, PLAYED_SECONDS, PRECISION))


def _key(case: Case, load: float, start: Split, seed: int) -> str:
    return f"{case} at {load:g} from {start}, seed {seed}"


def table(knees: dict[str, Knee], readings: Sequence[Reading]) -> Table:
    """One row for each workload and load: the worst starting split counts."""
    shown = Table(
        "workload", "knee, req/s", "best constant", "load", "ratio", "worst error", "born under load", "moves"
    )
    for name, found in knees.items():
        for load in LOADS:
            mine = [r for r in readings if (r.case, r.load) == (name, load)]
            if not mine:
                continue
            worst = max(mine, key=lambda r: abs(r.error))
            young = max(mine, key=lambda r: abs(r.young_error))
            shown.add_row(
                name,
                f"{found.rate:.2f}",
                found.split,
                f"{load:g}",
                f"{min(r.settled for r in mine):.2f} to {max(r.settled for r in mine):.2f}",
                f"{100 * worst.error:+.0f} % from {worst.start}",
                f"{100 * young.young_error:+.0f} % from {young.start}",
                f"{max(r.moves for r in mine)}",
            )
    return shown


def main() -> int:
    """Exit status 1 where a settled ratio, on average over the seeds, is further from the truth than `WITHIN`."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--workload", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1), help="so many")
    parser.add_argument("--out", type=Path, default=Path("out/capacity"), help="folder of capacity.json")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.workload or case.name in options.workload]
    kept, seeds = Kept(options.out / "capacity.json"), SEEDS[: options.seeds]
    knees: dict[str, Knee] = {}
    found: dict[tuple[str, float, Split], list[Reading]] = {}
    total = sum(len(in_reach(case)) + len(seeds) * len(LOADS) * len(STARTS) for case in cases)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("capacity", total=total)
        for case in cases:
            progress.update(task, description=f"{case.name}: the knee")
            if (edge := kept.knee(case)) is None:
                kept.found(case, edge := knee(case, in_reach(case), step=lambda: progress.advance(task)))
            else:
                progress.advance(task, len(in_reach(case)))
            knees[case.name] = edge
        for seed in seeds:
            for case in cases:
                for load in LOADS:
                    for start in STARTS:
                        progress.update(task, description=f"{case.name} at {load:g} from {start}")
                        if (said := kept.reading(case, load, start, seed)) is None:
                            said = read(case, knees[case.name].rate, load, start, seed)
                            kept.said(case, seed, said, start)
                        found.setdefault((case.name, load, start), []).append(said)
                        progress.advance(task)
    readings = [on_average(ones) for ones in found.values()]
    Console(width=None if sys.stdout.isatty() else 140).print(table(knees, readings))
    worst = max(readings, key=lambda r: abs(r.error))
    print(f"worst: {100 * worst.error:+.1f} % ({worst.case} at {worst.load:g} from {worst.start}); asked: {WITHIN:.0%}")
    return 1 if abs(worst.error) > WITHIN else 0


if __name__ == "__main__":
    sys.exit(main())
