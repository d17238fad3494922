"""``python -m bench.capacity``: what the agent's ratio says at parts of the load that some split really just serves.

Writes OUT/capacity.json after each workload, so that a run that is broken off leaves those that are complete.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.capacity.knee import CASES, LOADS, STARTS, Knee, Reading, in_reach, knee, read

SEED = 101
WITHIN = 0.15


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
    """Exit status 1 where a settled ratio is further from the truth than `WITHIN`."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--workload", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument("--out", type=Path, default=Path("out/capacity"), help="folder of capacity.json")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.workload or case.name in options.workload]
    options.out.mkdir(parents=True, exist_ok=True)
    knees: dict[str, Knee] = {}
    readings: list[Reading] = []
    total = sum(len(in_reach(case)) + len(LOADS) * len(STARTS) for case in cases)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("capacity", total=total)
        for case in cases:
            progress.update(task, description=case.name)
            knees[case.name] = knee(case, in_reach(case), step=lambda: progress.advance(task))
            for load in LOADS:
                for start in STARTS:
                    readings.append(read(case, knees[case.name].rate, load, start, SEED))
                    progress.advance(task)
            found = {"knees": {n: asdict(k) for n, k in knees.items()}, "readings": [asdict(r) for r in readings]}
            (options.out / "capacity.json").write_text(json.dumps(found, indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 140).print(table(knees, readings))
    return 1 if any(abs(r.error) > WITHIN for r in readings) else 0


if __name__ == "__main__":
    sys.exit(main())
