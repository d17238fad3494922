"""``semipd simulate``: its flags, its table, its files."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from semipd_agent.contract import SLO, Admission
from semipd_agent.slo.recording import RecordingError
from semipd_cli.simulator.engine import Size
from semipd_cli.simulator.oracle import ORACLES
from semipd_cli.simulator.policies import POLICIES
from semipd_cli.simulator.recorded import retold
from semipd_cli.simulator.scaling import command as scaling
from semipd_cli.simulator.scaling.ramp import Ramp
from semipd_cli.simulator.study import CONSTANTS, Outcome, best_constant, controller_of, paired, run
from semipd_cli.simulator.workloads import WORKLOADS, Workload, of_trace
from semipd_cli.simulator.written import check_file, check_picture
from semipd_engine.usage import Parser

BEST = "best-constant"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="semipd simulate",
        description="Plays workloads against the production scheduler, block manager and policies in virtual time. The "
        "step times are assumed, not measured on any device.",
    )
    names = f"of {', '.join(WORKLOADS)}; default: the first four"
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=names)
    parser.add_argument(
        "--trace", type=Path, help="also a recorded one: CSV (.gz) with t_s, input_tokens, output_tokens"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="how many times as fast a trace is run")
    parser.add_argument(
        "--ramp", default=None, metavar="0:1,600:4", help="multiply the rate over time: second:factor, lines in between"
    )
    parser.add_argument("--ttft", type=int, default=None, help="TTFT target, ms; default: the workload's")
    parser.add_argument("--tpot", type=int, default=None, help="TPOT target, ms")
    parser.add_argument("--oracle", choices=sorted(ORACLES), default=None, help="step times: default the workload's")
    parser.add_argument(
        "--policy",
        action="append",
        default=None,
        help=f"repeatable: {', '.join(POLICIES)}, {BEST} (in hindsight, over the same seeds), "
        "mixed/512 for one process, or a split as 80/100",
    )
    parser.add_argument(
        "--admission", choices=[mode.value for mode in Admission], default="Off", help="as spec.admission"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="length of one run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each pair")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--max-num-seqs", type=int, default=Size.max_num_seqs)
    parser.add_argument("--kv-tokens", type=int, default=Size.kv_tokens)
    parser.add_argument("--json", type=Path, default=None, help="write every run here")
    parser.add_argument("--plot", type=Path, default=None, help="write a picture here (needs matplotlib)")
    parser.add_argument(
        "--replay",
        type=Path,
        default=None,
        metavar="FILE",
        help="simulate nothing: decide once more what an agent's GET /v1/recording holds; exit status 1 where this "
        "program decides otherwise",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    scaling.add_flags(parser)
    return parser


def simulate(arguments: Sequence[str]) -> int:
    """Exit status 2 with one line where the flags make no sense."""
    options = _parser().parse_args(arguments)
    if options.replay is not None:
        return _replay(options.replay)
    try:
        _check(options)
        workloads = chosen(options)
        policies = options.policy or ["100/100", BEST, "algorithm1", "auto"]
        for policy in policies:
            if policy != BEST:
                controller_of(policy, SLO(), "cpu")
        rules = scaling.scalers(options)
    except (OSError, ValueError) as error:
        print(f"semipd simulate: {error}", file=sys.stderr)
        return 2
    size = Size(max_num_seqs=options.max_num_seqs, kv_tokens=options.kv_tokens)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if rules:
        return scaling.simulate_pods(options, workloads, rules, seeds, size)
    admission = Admission(options.admission)
    outcomes = _run_all(workloads, policies, seeds, options.seconds, size, admission, quiet=options.quiet)
    Console(width=None if sys.stdout.isatty() else 140).print(table(outcomes))  # a pipe tells no width
    if options.json is not None:
        options.json.write_text(json.dumps([o.as_json() for o in outcomes], indent=1) + "\n")
    if options.plot is not None:
        from semipd_cli.simulator.plot import draw

        draw(outcomes, options.plot, options.seconds)
    return 0


def _replay(file: Path) -> int:
    try:
        with file.open("rb") as lines:
            found = retold(lines)
    except (OSError, RecordingError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        print(f"semipd simulate: --replay {file}: {said}; save GET /v1/recording of an agent there", file=sys.stderr)
        return 2
    for move in found.moves:
        print(move)
    print(f"{found.decided} decisions in {found.seconds:.0f} s, {len(found.moves)} moves; {len(found.other)} differ")
    for other in found.other[:20]:
        print(f"  {other}")
    return 1 if found.other else 0


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for a number that nothing can be simulated with, and for a file that cannot be written."""
    numbers = ("seconds", "seeds", "speed", "ttft", "tpot", "max_num_seqs")
    least = dict.fromkeys(numbers, 0) | {"kv_tokens": Size.block_size - 1}
    for name, below in least.items():
        value = getattr(options, name)
        if value is not None and not below < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value:g}: it must be above {below}, and finite")
    if options.json is not None:
        check_file("--json", options.json)
    if options.plot is not None:
        check_picture("--plot", options.plot)


def chosen(options: argparse.Namespace) -> list[Workload]:
    """Raises ValueError, OSError."""
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        raise ValueError(f"{unknown[0]}: no such workload; there are {', '.join(WORKLOADS)}")
    found = [WORKLOADS[name] for name in options.workloads]
    if options.trace is not None:
        if not options.trace.is_file():
            raise ValueError(f"--trace {options.trace}: {'is a folder' if options.trace.is_dir() else 'no such file'}")
        targets = (options.ttft or 1000, options.tpot or 25)
        found.append(of_trace(options.trace, options.speed, *targets, options.oracle or "gpu"))
        if next(found[-1].arrivals(options.seconds, options.first_seed), None) is None:
            raise ValueError(
                f"--trace {options.trace}: it holds no request of the {options.seconds:g} s that are played with seed "
                f"{options.first_seed}; other stretches are those of --seconds, --speed and --first-seed (0: the start)"
            )
    if not found:
        found = list(WORKLOADS.values())[:4]
    asked = [
        replace(
            w,
            ttft_milliseconds=options.ttft or w.ttft_milliseconds,
            tpot_milliseconds=options.tpot or w.tpot_milliseconds,
            oracle=options.oracle or w.oracle,
        )
        for w in found
    ]
    return asked if options.ramp is None else [Ramp.parse(options.ramp).over(w) for w in asked]


def _run_all(
    workloads: Sequence[Workload],
    policies: Sequence[str],
    seeds: Sequence[int],
    seconds: float,
    size: Size,
    admission: Admission,
    *,
    quiet: bool,
) -> list[Outcome]:
    constants = len(CONSTANTS) if BEST in policies else 0
    total = len(workloads) * (len(policies) * len(seeds) + constants)
    outcomes: list[Outcome] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("simulate", total=total)
        for workload in workloads:
            for policy in policies:
                progress.update(task, description=f"{workload.name} {policy}")
                name = policy
                if policy == BEST:
                    name = best_constant(workload, seconds, seeds, size, lambda: progress.advance(task))
                for seed in seeds:
                    one = run(workload, name, seconds, seed, size, admission=admission)
                    outcomes.append(replace(one, policy=f"best {name}") if policy == BEST else one)
                    progress.advance(task)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row for each workload and policy; differences are paired with the best constant where there is one."""
    shown = Table("workload", "policy", "requests", "both targets", "against best constant", "moves an hour")
    shown.add_column("refused", justify="right")
    shown.add_column("p90 TTFT, ms", justify="right")
    shown.add_column("p90 TPOT, ms", justify="right")
    pairs = list(dict.fromkeys((o.workload, o.policy) for o in outcomes))
    for workload, policy in pairs:
        mine = [o for o in outcomes if (o.workload, o.policy) == (workload, policy)]
        best = [o for o in outcomes if o.workload == workload and o.policy.startswith("best ")]
        against = ""
        if best and not policy.startswith("best "):
            mean, band = paired([o.attainment for o in mine], [o.attainment for o in best])
            against = f"{100 * mean:+.1f} ± {100 * band:.1f}"
        n = len(mine)
        shown.add_row(
            workload,
            policy,
            str(sum(o.requests for o in mine)),
            f"{100 * sum(o.attainment for o in mine) / n:.1f} %",
            against,
            f"{sum(o.moves_an_hour for o in mine) / n:.1f} (most {max(o.moves_an_hour for o in mine):.0f})",
            f"{100 * sum(o.refused for o in mine) / max(1, sum(o.requests for o in mine)):.1f} %",
            f"{1000 * sum(o.ttft[1] for o in mine) / n:.0f}",
            f"{1000 * sum(o.tpot[1] for o in mine) / n:.1f}",
        )
    return shown
