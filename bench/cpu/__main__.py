"""The engine beside other CPU servers, turn by turn in one run (``make bench-cpu``).

    make bench-cpu                                    everything, three rounds: hours
    make bench-cpu ARGS="--quick"                     ten minutes
    make bench-cpu ARGS="--only decode-128,eight"     these parts
    make bench-cpu ARGS="--group chunks --model smollm2-135m --rounds 1"

Samples go to OUT/samples.jsonl; a turn that the same engine has a sample of is not taken again (`--fresh` forgets all).
The table, the verdicts, cpu.json and cpu.svg are made from all samples of this engine.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench.cpu import report
from bench.cpu.parts import WORKLOADS, parts
from bench.cpu.run import carry_out, engine_digest
from bench.cpu.schedule import GROUPS, PROBES, read, remaining, turns
from e2e.lib.models import random_model, smollm2

MODELS = {"llama-0.5b": lambda: random_model("llama", "small"), "smollm2-135m": smollm2}
QUICK = ("decode-128", "decode-2000", "eight", "prefill-512", "interference")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the short parts beside the default peer")
    parser.add_argument("--only", default="", help="parts, comma-separated")
    parser.add_argument("--group", action="append", choices=GROUPS, help="default: all; may be given again")
    parser.add_argument("--model", action="append", choices=WORKLOADS, help="default: all; may be given again")
    parser.add_argument("--rounds", type=int, help="default 3, quick 1")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the part back-to-back")
    parser.add_argument("--long-seconds", type=float, default=600.0, help="length of the part long-mix")
    parser.add_argument("--out", type=Path, default=Path("out/bench/cpu"))
    parser.add_argument("--publish", type=Path, help="also write cpu.json, cpu.md and cpu.svg here")
    parser.add_argument("--fresh", action="store_true", help="forget the samples")
    parser.add_argument("--lock", type=Path, help="a file to lock for each round, where others measure here, too")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    return parser.parse_args()


def main() -> int:
    asked = parse()
    for number in (signal.SIGINT, signal.SIGTERM):  # the servers are to be ended on either, in the background, too
        signal.signal(number, signal.default_int_handler)
    known = parts(back_to_back=asked.seconds, long_seconds=asked.long_seconds)
    names = asked.only.split(",") if asked.only else list(QUICK if asked.quick else [*PROBES, *known])
    if unknown := set(names) - {*known, *PROBES}:
        words = f"no part is called {', '.join(sorted(unknown))}; there are {', '.join([*PROBES, *known])}"
        print(f"bench-cpu: --only: {words}", file=sys.stderr)
        return 2
    samples = asked.out / "samples.jsonl"
    if asked.fresh:
        samples.unlink(missing_ok=True)
    models = asked.model or list(WORKLOADS)
    groups = [GROUPS[name] for name in asked.group or (["default"] if asked.quick else GROUPS)]
    rounds = asked.rounds or (1 if asked.quick else 3)
    chosen = [known[name] for name in names if name in known]
    planned = list(turns(models, groups, chosen, rounds, [name for name in names if name in PROBES]))
    digest = engine_digest()
    todo = [] if asked.report else remaining(planned, read(samples), digest)
    if todo:
        folders = {name: MODELS[name]() for name in models}
        try:
            carry_out(todo, folders, known, asked.out, asked.lock, lambda text: print(text, flush=True))
        except KeyboardInterrupt:
            print("bench-cpu: interrupted; the same command goes on from here", file=sys.stderr)
            return 130
    mine = [sample for sample in read(samples) if sample.engine == digest and not sample.error]
    for folder in (asked.out, *([asked.publish] if asked.publish else [])):
        report.write(mine, folder)
    print(report.markdown(mine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
