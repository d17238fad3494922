"""The part of ``semipd simulate`` that has several pods: its flags, its table, its files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from semipd_agent.contract import Admission
from semipd_cli.simulator.engine import Size
from semipd_cli.simulator.scaling.fleet import Router, Start
from semipd_cli.simulator.scaling.report import draw, table
from semipd_cli.simulator.scaling.run import Scaled, Scene, play
from semipd_cli.simulator.scaling.scalers import TARGETS, Scaler, scaler
from semipd_cli.simulator.workloads import Workload

ENOUGH = 0.9
"""Joint attainment of the fixed pool that rules are held against."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    pods = parser.add_argument_group("several pods", "one policy in all of them; the load is the service's")
    pods.add_argument("--pods", type=int, action="append", default=None, help="a fixed pool of so many; repeatable")
    pods.add_argument(
        "--autoscale",
        action="append",
        default=None,
        metavar="METRIC[/TARGET]",
        help="a HorizontalPodAutoscaler as the operator renders it, or with another metric; repeatable: "
        + ", ".join(f"{name}/{target:g}" for name, target in TARGETS.items()),
    )
    pods.add_argument("--min-pods", type=int, default=1, help="at the beginning, too")
    pods.add_argument("--max-pods", type=int, default=10)
    pods.add_argument("--start-seconds", type=float, default=Start.ready, help="from a pod's creation to its serving")
    pods.add_argument("--router", choices=[one.value for one in Router], default=Router.LEAST_LOADED.value)


def scalers(options: argparse.Namespace) -> list[Scaler]:
    """Those that are asked for; none: there is one pod, and policies are compared. Raises ValueError."""
    asked = [*map(str, options.pods or ()), *(options.autoscale or ())]
    if not asked:
        return []
    if fewest := [pods for pods in options.pods or () if pods < 1]:
        raise ValueError(f"--pods {fewest[0]}: it must be at least 1")
    if options.min_pods < 1 or options.max_pods < options.min_pods:
        raise ValueError(f"--min-pods {options.min_pods}, --max-pods {options.max_pods}: at least 1, and no fewer")
    if not 0 <= options.start_seconds < float("inf"):
        raise ValueError(f"--start-seconds {options.start_seconds:g}: it must be 0 or more, and finite")
    if len(options.policy or ()) > 1 or options.admission != Admission.OFF:
        raise ValueError("--pods and --autoscale take one --policy, and no --admission")
    if (policy := _policy(options)) != "auto" and not policy[:1].isdigit():
        raise ValueError(f"--policy {policy}: in several pods it is auto, or a split as 80/100")
    return [scaler(one, options.min_pods, options.max_pods) for one in asked]


def _policy(options: argparse.Namespace) -> str:
    return next(iter(options.policy or ()), "auto")


def simulate_pods(
    options: argparse.Namespace,
    workloads: Sequence[Workload],
    rules: Sequence[Scaler],
    seeds: Sequence[int],
    size: Size,
) -> int:
    outcomes = _play_all(options, workloads, rules, seeds, size)
    console = Console(width=None if sys.stdout.isatty() else 180)  # a pipe tells no width
    for name in dict.fromkeys(o.workload for o in outcomes):
        console.print(name, table([o for o in outcomes if o.workload == name], ENOUGH))
    if options.json is not None:
        options.json.write_text(json.dumps([o.as_json() for o in outcomes], indent=1) + "\n")
    if options.plot is not None:
        draw([o for o in outcomes if o.workload == outcomes[0].workload], options.plot, options.seconds)
    return 0


def _play_all(
    options: argparse.Namespace,
    workloads: Sequence[Workload],
    rules: Sequence[Scaler],
    seeds: Sequence[int],
    size: Size,
) -> list[Scaled]:
    outcomes = list[Scaled]()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    start = Start(min(Start.pending, options.start_seconds), options.start_seconds)
    total = len(workloads) * len(rules) * len(seeds) * options.seconds
    with Progress(*columns, console=Console(stderr=True), disable=options.quiet) as progress:
        task, over = progress.add_task("simulate", total=total), 0.0
        for workload in workloads:
            scene = Scene(workload, options.seconds, size, _policy(options), start, Router(options.router))
            for rule in rules:
                for seed in seeds:
                    progress.update(task, description=f"{workload.name} {rule.name}", completed=over)
                    outcomes.append(play(scene, rule, seed, partial(_show, progress, task, over)))
                    over += options.seconds
    return outcomes


def _show(progress: Progress, task: TaskID, before: float, second: float) -> None:
    progress.update(task, completed=before + second)
