"""The engine beside other CPU servers, turn by turn in one run (``make bench-cpu``).

    make bench-cpu ARGS="--quick"                       one round of the most important: ten minutes
    make bench-cpu ARGS="--group default --rounds 3"    the same three times: twenty minutes on two cores
    make bench-cpu                                      every group but `long`: hours
    make bench-cpu ARGS="--group long --rounds 1 --model llama-0.5b"
    make bench-cpu ARGS="--group budgets --model smollm2-135m --publish docs/benchmarks/budgets"
    make bench-cpu ARGS="--group speeds --only decode-128,eight --publish docs/benchmarks"

Samples go to OUT/samples.jsonl; a block (one part in one round) that is there under the same key is not measured again
(`--fresh` forgets all). The table, the verdicts, cpu.json and cpu.svg are made from all samples with today's keys.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from bench import usage
from bench.cpu import report
from bench.cpu.identity import Identity, machine, versions
from bench.cpu.machine import cpu_flags, foremost
from bench.cpu.parts import parts
from bench.cpu.plans import WORKLOADS
from bench.cpu.run import carry_out, expected_seconds
from bench.cpu.schedule import GROUPS, SETS, Sample, Turn, read, remaining, turns
from bench.cpu.vllm import remark
from bench.usage import RefusedError, count, folder, made, number, output
from e2e.lib.models import random_model, smollm2
from semipd_engine.usage import Parser

MODELS = {"llama-0.5b": lambda: random_model("llama", "small"), "smollm2-135m": smollm2}
LEAST_SECONDS = 9.0
"""Shorter, the parts with a length have no quiet stretch and no prompt after it."""


def part_names(text: str) -> list[str]:
    known = dict.fromkeys(part for group in GROUPS.values() for part in group.parts)
    names = text.split(",")
    if unknown := set(names) - {*known}:
        raise argparse.ArgumentTypeError(
            f"no part is called {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(known)}"
        )
    return names


def seconds(text: str) -> float:
    if (value := number(text)) <= LEAST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: must be more than {LEAST_SECONDS:g}")
    return value


def parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    found = Parser(prog="bench-cpu", description=__doc__, formatter_class=raw, allow_abbrev=False)
    found.add_argument("--quick", action="store_true", help="--group default --rounds 1")
    found.add_argument("--only", type=part_names, default=[], help="parts of the groups, comma-separated")
    several = f"one of {', '.join((*SETS, *GROUPS))}; default: all; may be given again"
    found.add_argument("--group", action="append", choices=(*SETS, *GROUPS), metavar="GROUP", help=several)
    found.add_argument("--model", action="append", choices=WORKLOADS, help="default: both; may be given again")
    found.add_argument("--rounds", type=count, help="default 3, quick 1")
    found.add_argument("--seconds", type=seconds, default=60.0, help="length of the part back-to-back")
    found.add_argument("--long-seconds", type=seconds, default=600.0, help="length of the part long-mix")
    found.add_argument("--out", type=folder, default=Path("out/bench/cpu"))
    found.add_argument("--publish", type=folder, help="also write cpu.json, cpu.md and cpu.svg here")
    found.add_argument("--fresh", action="store_true", help="forget the samples")
    found.add_argument("--lock", type=output, help="a file to lock for each round, where others measure here, too")
    before = "while measuring, weigh more than all else that the machine does (root only)"
    found.add_argument("--foremost", action="store_true", help=before)
    found.add_argument("--report", action="store_true", help="measure nothing")
    return found


def groups_named(names: Sequence[str]) -> list[str]:
    """Sets spelt out, each group once, in the order of importance."""
    wanted = {group for name in names for group in SETS.get(name, (name,))}
    return [name for name in GROUPS if name in wanted]


def may_be_foremost() -> bool:
    try:
        with foremost():
            return True
    except PermissionError:
        return False


def kept_in(samples: Path) -> list[Sample]:
    """Raises `RefusedError`."""
    try:
        return read(samples)
    except (OSError, ValueError) as problem:
        words = f"{samples}: it cannot be read ({type(problem).__name__}); remove it, or name another --out"
        raise RefusedError(words) from problem


def folders(asked: Collection[str], kept: Collection[str] = ()) -> dict[str, Path]:
    """Of the models that are asked for, made where they are not there yet; and of those that have samples, which stay
    on the page where their model can still be had. Raises `RefusedError`."""
    found = {name: made(f"--model {name}", MODELS[name]) for name in WORKLOADS if name in asked}
    for name in WORKLOADS:
        if name in kept and name not in found:
            with suppress(RefusedError):
                found[name] = made(f"--model {name}", MODELS[name])
    return found


def guarded(name: str, asked: argparse.Namespace, carry_out: Callable[[], int]) -> int:
    """As `usage.guarded`, of a benchmark that keeps its samples."""
    if asked.fresh and asked.report:
        print(f"{name}: --fresh: it forgets what --report shows; leave one of them out", file=sys.stderr)
        return 2
    if asked.foremost and not may_be_foremost():
        print(f"{name}: --foremost: this user may not; ask as root, or leave it out", file=sys.stderr)
        return 2
    return usage.guarded(name, carry_out, "; the same command goes on from here")


def main(words: Sequence[str] | None = None) -> int:
    """0: all is measured; 1: something is not, or was lost; 2: the arguments are bad; 130: interrupted."""
    asked = parser().parse_args(words)
    names = groups_named(asked.group or (["default"] if asked.quick else ["all"]))
    models = asked.model or list(WORKLOADS)
    rounds = asked.rounds or (1 if asked.quick else 3)
    planned = list(turns(models, [GROUPS[name] for name in names], rounds, asked.only))
    if not planned:
        print(f"bench-cpu: --only: the groups {', '.join(names)} have none of these parts", file=sys.stderr)
        return 2
    return guarded("bench-cpu", asked, lambda: carried_out(asked, planned))


def nothing_in(samples: Path) -> RefusedError:
    """A page that was published stays as it is."""
    return RefusedError(
        f"{samples} has nothing of these sources and this machine: measure first, or name another --out"
    )


def carried_out(asked: argparse.Namespace, planned: Sequence[Turn]) -> int:
    """Measure what is missing and tell of all. Raises `RefusedError`."""
    samples = asked.out / "samples.jsonl"
    if asked.fresh:
        samples.unlink(missing_ok=True)
    kept = kept_in(samples)
    if asked.report and not kept:
        raise nothing_in(samples)
    known = parts(back_to_back=asked.seconds, long_seconds=asked.long_seconds)
    asked_models, kept_models = {turn.model for turn in planned}, {sample.turn.model for sample in kept}
    identity = Identity(folders(asked_models, kept_models), known)
    todo = [] if asked.report else remaining(planned, kept, identity.key)
    if todo:
        minutes = expected_seconds(todo, known) / 60
        print(f"bench-cpu: {len(todo)} turns of {len(planned)}, about {minutes:.0f} min on two cores", flush=True)
        carry_out(todo, asked.out, asked.lock, identity, lambda text: print(text, flush=True), asked.foremost)
    mine = [sample for sample in read(samples) if identity.holds(sample)]
    if not mine:
        raise nothing_in(samples)
    about = {"machine": machine(), "versions": dict(versions()), "peer": remark(cpu_flags())}
    for place in (asked.out, *([asked.publish] if asked.publish else [])):
        found = report.write(mine, place, about)
    print((asked.out / "cpu.md").read_text())
    print(f"bench-cpu: {sum(verdict.holds is False for verdict in found)} verdicts fall short", file=sys.stderr)
    return 1 if remaining(planned, mine, identity.key) else 0


if __name__ == "__main__":
    sys.exit(main())
