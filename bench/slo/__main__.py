"""The controller on the real engine, against what was said before (``make bench-slo``).

    make bench-slo                                       the next registered run: some 25 minutes on two cores
    make bench-slo ARGS="--quick"                        the whole way with few requests: seven minutes
    make bench-slo ARGS="--runs 3 --publish docs/benchmarks"    three in a row
    make bench-slo ARGS="--report --publish docs/benchmarks"    measures nothing

`--quick` is no registered run; with `--profile FILE`, a step profile instead of measuring one, it takes five minutes.
A run is registered in OUT/runs.jsonl, with the digest of its plan, before anything is measured under load; one that was
broken off goes on with the same command, and one that is given up (`--give-up`) stays in the list.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.cpu.__main__ import may_be_foremost
from bench.slo import report, series
from bench.slo.plan import FULL, QUICK, UnplannableError
from bench.slo.prediction import ChangedError
from bench.slo.run import Bench, MeasureError, minutes
from bench.usage import RefusedError, count, folder, made, output
from e2e.lib.models import smollm2
from semipd_engine.contract import ProfileError
from semipd_engine.usage import Parser


def parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    found = Parser(prog="bench-slo", description=__doc__, formatter_class=raw, allow_abbrev=False)
    found.add_argument(
        "--quick", action="store_true", help="few requests, below OUT/quick: shows the way, proves nothing"
    )
    found.add_argument("--profile", type=Path, help="of this model and machine, instead of measuring one")
    found.add_argument("--runs", type=count, default=1, help="one after the other")
    found.add_argument("--out", type=folder, default=Path("out/bench/slo"))
    found.add_argument("--publish", type=folder, help="also write slo.md, slo.json and slo.svg here")
    found.add_argument("--give-up", action="store_true", help="begin anew; what was begun stays in the list")
    found.add_argument("--lock", type=output, help="a file to lock for each trial, where others measure here, too")
    found.add_argument("--foremost", action="store_true", help="as bench-cpu's (root only)")
    found.add_argument("--report", action="store_true", help="measure nothing")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """0: measured, whatever came out; 1: something could not be; 2: the arguments are bad; 130: interrupted."""
    asked = parser().parse_args(words)
    for signum in (signal.SIGINT, signal.SIGTERM):  # the servers are to be ended on either
        signal.signal(signum, signal.default_int_handler)
    if asked.foremost and not may_be_foremost():
        print("bench-slo: --foremost: this user may not; ask as root, or leave it out", file=sys.stderr)
        return 2
    if asked.quick and asked.publish:
        print("bench-slo: --publish: --quick proves nothing that could be published; leave one out", file=sys.stderr)
        return 2
    out = asked.out / "quick" if asked.quick else asked.out
    effort = QUICK if asked.quick else FULL

    def problem(text: str) -> None:
        print(f"bench-slo: {text}", file=sys.stderr)

    try:
        series.mend(out, problem)
        if not asked.report:
            if asked.give_up:
                series.give_up(out)
            how = (asked.lock, asked.foremost, lambda text: print(text, flush=True), asked.profile)
            bench = Bench(out, made("SmolLM2-135M", smollm2), effort, *how)
            for _ in range(asked.runs):
                print(f"bench-slo: run {bench.number}, about {minutes(effort):.0f} minutes", flush=True)
                bench.run()
        entries, runs = series.read(out)
    except (MeasureError, ChangedError, ProfileError, RefusedError, UnplannableError) as error:
        problem(str(error))
        return 1
    except KeyboardInterrupt:
        problem("interrupted; the same command goes on from here")
        return 130
    for place in (out, *([asked.publish] if asked.publish else [])):
        report.write(entries, runs, place)
    print((out / "slo.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
