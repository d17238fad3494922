"""``python -m bench.replicas``: pods over a trace with a ramp, by rule; OUT/replicas.json, .md and .svg.

Each run is written when it is over, and one that is there already, of the same programs, is not played again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench import kept
from bench.cpu.identity import commit
from bench.replicas import plan
from bench.study.report import as_markdown
from bench.usage import folder, minutes
from semipd_cli.simulator.scaling.report import cost, draw, mean, peak_pool, table
from semipd_cli.simulator.scaling.run import Scaled, play
from semipd_engine.usage import Parser

TRACES = Path(__file__).parents[1] / "traces"


def verdict(outcomes: Sequence[Scaled]) -> tuple[bool, str]:
    """Whether ours keeps what is asked of it, and in words."""
    peak = peak_pool(outcomes, plan.ENOUGH)
    ours = f"{plan.OURS}: {100 * mean(outcomes, plan.OURS):.1f} % within both targets"
    if peak is None:
        return False, f"{ours}; no fixed pool that was played attains {100 * plan.ENOUGH:g} %"
    part = cost(outcomes, plan.OURS) / cost(outcomes, peak)
    held = mean(outcomes, plan.OURS) >= plan.ENOUGH and part <= plan.AT_MOST
    asked = f"asked: {100 * plan.ENOUGH:g} % at {100 * plan.AT_MOST:g} %"
    return held, f"{ours} at {100 * part:.0f} % of the replica-seconds of {peak} ({asked})"


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 1 where ours misses what is asked of it."""
    parser = Parser(prog="python -m bench.replicas", description=__doc__)
    names = [rule.name for rule in plan.rules()]
    parser.add_argument("--rule", action="append", choices=names, help="only this one; repeatable")
    most = len(plan.SEEDS)
    parser.add_argument("--seeds", type=int, default=most, choices=range(1, most + 1), help="so many of them")
    parser.add_argument("--minutes", type=minutes, default=60.0, help="begin no run after so long")
    parser.add_argument("--out", type=folder, default=Path("out/replicas"))
    options = parser.parse_args(words)
    scene, until = plan.scene(TRACES), time.monotonic() + 60 * options.minutes
    rules = [rule for rule in plan.rules() if not options.rule or rule.name in options.rule]
    found = Kept(options.out / "replicas.json")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    todo = [(rule, seed) for seed in plan.SEEDS[: options.seeds] for rule in rules if not found.has(rule.name, seed)]
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        for index, (rule, seed) in enumerate(todo):
            if time.monotonic() > until:
                print("not all is played: the same command goes on", file=sys.stderr)
                break
            task = progress.add_task(f"{rule.name} {index + 1}/{len(todo)}", total=plan.SECONDS)
            found.add(play(scene, rule, seed, partial(_show, progress, task)))
    if not any(o.scaler == plan.OURS for o in found.outcomes):
        print(f"{plan.OURS} was not played: nothing is drawn, and no verdict given", file=sys.stderr)
        return 1
    draw(found.outcomes, options.out / "replicas.svg", plan.SECONDS)
    shown = table(found.outcomes, plan.ENOUGH)
    (options.out / "replicas.md").write_text(as_markdown(shown))
    Console(width=None if sys.stdout.isatty() else 180).print(shown)
    held, told = verdict(found.outcomes)
    print(told)
    return 0 if held else 1


def _show(progress: Progress, task: TaskID, second: float) -> None:
    progress.update(task, completed=second)


class Kept:
    """Outcomes on disk; those of other programs are dropped."""

    def __init__(self, path: Path) -> None:
        self._path, self._code = path, plan.code()
        path.parent.mkdir(parents=True, exist_ok=True)
        told = kept.read(path)
        self.outcomes = [Scaled.of_json(o) for o in told.get("runs", ())] if told.get("code") == self._code else []

    def has(self, rule: str, seed: int) -> bool:
        return any((o.scaler, o.seed) == (rule, seed) for o in self.outcomes)

    def add(self, outcome: Scaled) -> None:
        self.outcomes.append(outcome)
        runs = [o.as_json() for o in self.outcomes]
        told = {"code": self._code, "commit": commit(), "ramp": plan.RAMP.points, "runs": runs}
        self._path.write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    sys.exit(main())
