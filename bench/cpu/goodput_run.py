"""Goodput beside the best peer setting (``make bench-goodput``): asks one trial after the other, until none is left.

    make bench-goodput                                               three seeds, all arrivals, both models: a day
    make bench-goodput ARGS="--model smollm2-135m --seeds 1 --requests 40"
    make bench-goodput ARGS="--model smollm2-135m --publish docs/benchmarks"

Trials go to OUT/samples.jsonl; those of today's sources and settings are not made again, so that the same command goes
on where it was cut off. One server runs at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench.cpu.__main__ import folders, guarded, kept_in, nothing_in
from bench.cpu.figures import Figures
from bench.cpu.goodput import (
    ARRIVALS,
    GOOD_PERCENT,
    LEAST_ARRIVALS,
    LEAST_RATIO,
    SIDES,
    UNLOADED,
    Ask,
    Found,
    asks,
    holds,
    judged,
    outcomes,
    plan,
    progress,
)
from bench.cpu.identity import Identity, commit, machine, versions
from bench.cpu.machine import BUSY, Watch, cpu_flags, watching
from bench.cpu.parts import parts
from bench.cpu.plans import WORKLOADS, salted
from bench.cpu.report import MARKS
from bench.cpu.run import LOST, SETTLE_SECONDS, SILENCE_SECONDS, Servers, alone, ask, seed_of
from bench.cpu.schedule import Sample, Turn, append, read
from bench.cpu.servers import Running, contender_named
from bench.cpu.vllm import remark
from bench.traffic import Target, assert_punctual, replay
from bench.usage import count, folder, output
from semipd_engine.usage import Parser


def parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    found = Parser(prog="bench-goodput", description=__doc__, formatter_class=raw, allow_abbrev=False)
    found.add_argument("--model", action="append", choices=WORKLOADS, help="default: both; may be given again")
    found.add_argument("--arrivals", action="append", choices=ARRIVALS, help="default: all; may be given again")
    found.add_argument("--seeds", type=count, default=3)
    found.add_argument("--requests", type=count, default=100, help="of a trial")
    found.add_argument("--out", type=folder, default=Path("out/bench/goodput"))
    found.add_argument("--publish", type=folder, help="also write goodput.json and goodput.md here")
    found.add_argument("--fresh", action="store_true", help="forget the samples")
    found.add_argument("--lock", type=output, help="a file to lock for each trial, where others measure here, too")
    found.add_argument("--foremost", action="store_true", help="as bench-cpu's (root only)")
    found.add_argument("--minutes", type=count, help="begin no trial later than that; the same command goes on")
    found.add_argument("--report", action="store_true", help="measure nothing")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """0: all is measured; 1: something is not; 2: the arguments are bad; 130: interrupted."""
    asked = parser().parse_args(words)
    return guarded("bench-goodput", asked, lambda: carried_out(asked))


def carried_out(asked: argparse.Namespace) -> int:
    """Make what is missing and tell of all. Raises `RefusedError`."""
    models, arrivals, seeds = asked.model or list(WORKLOADS), asked.arrivals or list(ARRIVALS), range(asked.seeds)
    samples = asked.out / "samples.jsonl"
    if asked.fresh:
        samples.unlink(missing_ok=True)
    kept = kept_in(samples)
    if asked.report and not kept:
        raise nothing_in(samples)
    identity = Identity(folders(models), parts())

    def found(model: str) -> Found:
        return Found([each for each in read(samples) if identity.holds(each)], model, asked.requests)

    until = time.monotonic() + 60 * asked.minutes if asked.minutes else math.inf
    for model in models if not asked.report else ():
        with Trials(model, asked.out, identity, asked.lock, asked.foremost) as trials:
            while time.monotonic() < until and (todo := next(asks(found(model), arrivals, seeds), None)):
                trials.make(todo, found(model))
                done, total = progress(found(model), arrivals, seeds)
                trials.say(done, total)
    every = {model: found(model) for model in models}
    if not any(each.samples for each in every.values()):
        raise nothing_in(samples)
    for place in (asked.out, *([asked.publish] if asked.publish else [])):
        write(every, arrivals, seeds, place)
    print((asked.out / "goodput.md").read_text())
    return int(any(next(asks(each, arrivals, seeds), None) is not None for each in every.values()))


class Trials:
    """Makes them, with one server at a time."""

    def __init__(self, model: str, out: Path, identity: Identity, lock: Path | None, foremost: bool) -> None:
        self._model, self._out, self._identity = model, out, identity
        self._lock, self._foremost = lock, foremost
        self._folder = tempfile.TemporaryDirectory(prefix="bench-goodput-")
        self._watching = watching(Path(self._folder.name))
        self._servers: tuple[str, Servers] | None = None
        self._run, self._commit = datetime.now(UTC).isoformat(timespec="seconds"), commit()
        self._began, self._done_before = time.monotonic(), -1

    def __enter__(self) -> Trials:
        self._watch: Watch = self._watching.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._watching.__exit__(None, None, None)
        self._folder.cleanup()

    def make(self, todo: Ask, found: Found) -> None:
        """Adds a sample, whatever comes of it."""
        contender = contender_named(todo.contender)
        load, at = round(os.getloadavg()[0], 1), datetime.now(UTC).isoformat(timespec="seconds")
        figures: Figures = {"rate": todo.rate} | found.limits if todo.rate else {}
        error, began = "", time.monotonic()
        try:
            server = self._server(contender.server)
            with alone(self._lock, self._foremost):
                began = time.monotonic()
                asyncio.run(server.put_in_force(contender.split))
                if todo.arrivals == UNLOADED:
                    figures = self._unloaded(todo, server)
                else:
                    assert found.target is not None
                    figures = {**figures, **_trial(todo, found.requests, found.target, server)}
        except LOST as reason:
            error = f"{type(reason).__name__}: {reason}"
        end = time.monotonic()
        self._last = f"{todo.model} {todo.arrivals} {todo.contender} #{todo.seed} at {todo.rate:g}/s: " + (
            error.splitlines()[0] if error else ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        )
        sample = Sample(todo.turn, dict(figures), error, self._identity.key(todo.turn), self._run, self._commit)
        seconds, others = round(end - began, 1), self._watch.others(began, end)
        about = {"at": at, "seconds": seconds, "load": load, "others": others, "foremost": self._foremost}
        append(Sample(**{**sample.__dict__, **about}), self._out / "samples.jsonl")

    def say(self, done: int, total: int) -> None:
        """What came of the last one, and how far this is."""
        self._done_before = done if self._done_before < 0 else self._done_before
        made, left = done - self._done_before, ""
        if made:
            left = f", {(time.monotonic() - self._began) / made * (total - done) / 60:.0f} min left"
        print(f"[{done}/{total} searches{left}] {self._last}", flush=True)

    def _server(self, name: str) -> Running:
        """Raises what `Servers.get` raises."""
        if self._servers is None or self._servers[0] != name:
            self._end()
            place = Path(self._folder.name) / name
            self._servers = name, Servers(self._identity.models[self._model], self._model, place, self._out / "logs")
        return self._servers[1].get(name)

    def _end(self) -> None:
        if self._servers is not None:
            self._servers[1].__exit__()
            self._servers = None

    def _unloaded(self, todo: Ask, server: Running) -> Figures:
        def figures(part: str) -> Figures:
            turn = Turn(todo.model, todo.turn.group, todo.seed, part, todo.contender)
            return asyncio.run(ask(turn, self._identity.parts[part], server, None))

        return {
            "ttft_ms": figures("prefill-512")["ttft_ms"],
            "tpot_ms": 1000 / figures("decode-128")["tokens_per_s"],
        }


def _trial(todo: Ask, requests: int, target: Target, server: Running) -> Figures:
    """Raises what `replay` raises, TimeoutError of a server that does not come to an end, and `ClientLateError`."""
    asked = salted(plan(todo.arrivals, todo.rate, todo.seed, requests), seed_of(todo.turn, todo.rate))

    async def answers() -> Figures:
        await asyncio.sleep(SETTLE_SECONDS)
        async with asyncio.timeout(4 * asked[-1].at + 3 * SILENCE_SECONDS):
            records = await replay(asked, server.url, silence_seconds=SILENCE_SECONDS)
        assert_punctual(records)
        return judged(records, target)

    return asyncio.run(answers())


def write(every: Mapping[str, Found], arrivals: Sequence[str], seeds: Sequence[int], place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "goodput.md").write_text(markdown(every, arrivals, seeds))
    content = {
        "machine": machine(),
        "versions": dict(versions()),
        "samples": [asdict(sample) for found in every.values() for sample in found.samples],
    }
    (place / "goodput.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def markdown(every: Mapping[str, Found], arrivals: Sequence[str], seeds: Sequence[int]) -> str:
    lines = ["# Goodput: `make bench-goodput`", "", *_preface([s for found in every.values() for s in found.samples])]
    for model, found in every.items():
        target = found.target
        shown = f"TTFT {target.ttft:g} ms, TPOT {target.tpot:g} ms" if target else "not known yet"
        lines += [f"## {model}", "", f"Targets: {shown}. {found.requests} requests a trial, {len(seeds)} seeds.", ""]
        head = " | ".join(("arrivals", *SIDES, "the better of ours to the peer"))
        lines += [f"| {head} |", "|---|" + "---|" * (len(SIDES) + 1)]
        results = outcomes(found, arrivals, seeds)
        for outcome in results:
            cells = [_cell(*outcome.sides[side]) if side in outcome.sides else "open" for side in SIDES]
            ratio = "open" if outcome.ratio is None else f"{outcome.ratio:.2f}"
            lines.append(f"| {outcome.arrivals} | {' | '.join(cells)} | {ratio} |")
        claim = f"at least {LEAST_RATIO} × on {LEAST_ARRIVALS} of {len(ARRIVALS)}"
        lines += ["", f"{claim}: {MARKS[holds(results)]}.", ""]
        lines += [f"Lost: {s.turn.contender} {s.turn.part}: {' '.join(s.error.split())[:200]}" for s in found.lost]
    return "\n".join(lines).rstrip() + "\n"


def _preface(samples: Sequence[Sample]) -> list[str]:
    lines = []
    if samples:
        commits = ", ".join(sorted({each.commit or "unknown" for each in samples}))
        minutes, first = sum(sample.seconds for sample in samples) / 60, sum(sample.foremost for sample in samples)
        lines += [
            f"{len(samples)} trials of commit {commits} (a + is a changed tree), {minutes:.0f} minutes; {machine()}."
        ]
        if first:
            lines += [f"In {first} of them ours and the servers' processes weighed 86 times as much as others'."]
        busy = sum(sample.disturbed for sample in samples)
        lines += [f"Beside {busy} of them more than {BUSY} tasks of others ran, or nobody counted.", ""]
    if said := remark(cpu_flags()):
        lines += [said, ""]
    lines += [
        f"The greatest rate at which {GOOD_PERCENT:g} % of the requests meet both targets; of each side the setting"
    ]
    return [*lines, "that is best with the first seed. With several seeds: the median, and each.", ""]


def _cell(name: str, rates: Sequence[float]) -> str:
    each = f" ({', '.join(f'{rate:.2f}' for rate in rates)})" if len(rates) > 1 else ""
    return f"{name}: {statistics.median(rates):.2f}/s{each}"


if __name__ == "__main__":
    sys.exit(main())
