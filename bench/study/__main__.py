"""``python -m bench.study``: plays what is missing of the study, for some minutes at a time, and reports it.

Each run is kept under a key of all that it depends on, so it may be broken off anywhere and goes on where it was. A
report may take runs of older code where today's has none (`--also`): each of its rows tells whose runs it has.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bench.cpu.identity import commit
from bench.study import plan, report
from bench.usage import folder, minutes, output
from semipd_cli.simulator.study import Outcome, run
from semipd_engine.usage import Parser

TRACES = Path(__file__).parents[1] / "traces"
CONSTANTS, BUDGETS, HOURS = "constants", "mixed", "hours"
OTHERS = tuple(rule for rule in plan.RULES if rule not in (report.AUTO, report.CHOICE))
PARTS = (report.AUTO, CONSTANTS, BUDGETS, HOURS, *OTHERS, report.CHOICE)
"""Of the plan, in the order in which they are played."""


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.study", description=__doc__)
    parser.add_argument("--minutes", type=minutes, default=60.0, help="break off after so long; the next call goes on")
    parser.add_argument("--runs", type=output, default=Path("out/study/runs.jsonl"), help="where runs are kept")
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder with the Azure and Mooncake traces")
    parser.add_argument("--out", type=folder, default=Path("out/study"), help="folder of study.json and the plots")
    most = len(plan.SEEDS)
    parser.add_argument(
        "--seeds", type=int, default=most, choices=range(2, most + 1), help="so many of the held-out ones"
    )
    parser.add_argument("--workload", action="append", default=None, help="only this one; repeatable")
    parser.add_argument(
        "--policies", type=_parts, default=PARTS, metavar="A,B", help=f"only these parts: {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="CODE",
        help="report runs of this older code (a digest), too, where today's has none; repeatable, newest first",
    )
    options = parser.parse_args(words)
    cases = [c for c in plan.cases(options.traces) if not options.workload or c.workload.name in options.workload]
    if not cases:
        names = ", ".join(case.workload.name for case in plan.cases(options.traces))
        print(f"python -m bench.study: --workload names none of the study's: {names}", file=sys.stderr)
        return 2
    absent = [c for c in cases if c.workload.file is not None and not c.workload.file.is_file()]
    for case in absent:
        print(f"{case.workload.file} is missing: {case.workload.name} is left out", file=sys.stderr)
    cases = [c for c in cases if c not in absent]
    kept = Kept(options.runs, plan.code(), options.also)
    if unknown := [code for code in options.also if code not in kept.codes]:
        there = ", ".join(sorted(kept.codes)) or "none"
        print(
            f"python -m bench.study: --also {unknown[0]}: of that code {options.runs} has no run: {there}",
            file=sys.stderr,
        )
        return 2
    seeds = plan.SEEDS[: options.seeds]
    ended = play(cases, seeds, kept, time.monotonic() + 60 * options.minutes, options.policies)
    if not ended:
        print("not all is played: the same command goes on", file=sys.stderr)
    found = report.rows(cases, kept.found, seeds)
    if found:
        shown = [kept.found(plan.Unit(case, report.AUTO, seed)) for case in cases for seed in seeds]
        autos = [played.outcome for played in shown if played is not None]
        report.write(found, autos, options.out, kept.code, seeds)
        Console(width=None if sys.stdout.isatty() else 200).print(report.table(found))
    return 0


class Kept:
    """Outcomes on disk, by key. One line is one run; a line that was cut off is played again."""

    def __init__(self, path: Path, code: plan.Code, also: Sequence[str] = ()) -> None:
        """`also`: digests of older code."""
        self._path, self.code = path, code
        self._codes = [code, *(plan.Code(older, older) for older in also)]
        self._played: dict[str, report.Played] = {}
        self._commit = commit()
        self.codes = set[str]()
        """Of all runs that are kept, the older ones too."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):
            path.write_text(text + "\n")
        for line in text.splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            key, made_by, at = entry.pop("key"), entry.pop("code"), entry.pop("commit", "")
            self.codes.add(made_by)
            if any(made_by in (one.engine, one.policies) for one in self._codes):
                self._played[key] = report.Played(Outcome.of_json(entry), made_by, at)

    def found(self, unit: plan.Unit) -> report.Played | None:
        """By today's code, else by the first of the older ones that has played it: asked the very same requests."""
        keys = (unit.key(code) for code in self._codes)
        return next((self._played[key] for key in keys if key in self._played), None)

    def play(self, unit: plan.Unit) -> Outcome:
        """By today's code."""
        key, made_by = unit.key(self.code), self.code.of(unit.policy)
        if key not in self._played:
            case = unit.case
            outcome = run(case.workload, unit.policy, case.seconds, unit.seed, case.size, warm_up=case.warm_up)
            with self._path.open("a") as file:
                made = {"key": key, "code": made_by, "commit": self._commit}
                file.write(json.dumps({**made, **outcome.as_json()}) + "\n")
            self._played[key] = report.Played(outcome, made_by, self._commit)
        return self._played[key].outcome


def _parts(told: str) -> tuple[str, ...]:
    asked = told.split(",")
    if unknown := [part for part in asked if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: no part of the study; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)


def play(cases: list[plan.Case], seeds: Sequence[int], kept: Kept, until: float, parts: Sequence[str] = PARTS) -> bool:
    """True: all of these parts is played."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} runs"))
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("study", total=None)
        for unit in _units(cases, seeds, kept, parts):
            if time.monotonic() > until:
                return False
            progress.update(task, description=f"{unit.case.workload.name} {unit.policy} {unit.seed}")
            kept.play(unit)
            progress.advance(task)
    return True


def _units(cases: list[plan.Case], seeds: Sequence[int], kept: Kept, parts: Sequence[str]) -> Iterator[plan.Unit]:
    """Each part of all workloads, one after the other: so a study that is broken off tells that of each."""
    chosen = {CONSTANTS: plan.HINDSIGHT, BUDGETS: plan.BUDGETS}
    for part in parts:
        for case in cases:
            if part == HOURS:
                yield from plan.hour_units(case)
                continue
            among = chosen.get(part, (part,))
            first = [unit for unit in plan.first_units(case, seeds) if unit.policy in among]
            yield from first
            if part in chosen:
                yield from plan.final_units(case, [kept.play(unit) for unit in first], seeds)


if __name__ == "__main__":
    raise SystemExit(main())
