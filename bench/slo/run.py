"""Carries a run out: profile, requests alone, the plan and its digest, held-out steps, then trial after trial.

What is measured stays in the run's folder: one that was broken off goes on where it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from bench.cpu.figures import Figures, UnusableError
from bench.cpu.identity import commit, machine
from bench.cpu.machine import Watch, watching
from bench.cpu.plans import salted
from bench.cpu.run import LOST, SETTLE_SECONDS, SILENCE_SECONDS, alone, seed_of, warm_up
from bench.cpu.schedule import Sample, Turn, append
from bench.cpu.servers import KV_BYTES, Running, running
from bench.slo import contenders, log, plan, series, steps
from bench.slo.plan import AUTO, KNEE, ORDER, Effort, Plan, crowd
from bench.slo.prediction import ChangedError, seal
from bench.slo.series import LOG, PLAN, load, now
from bench.slo.verdicts import Run, outcome
from bench.traffic import Record, Target, quantile, replay
from semipd_engine.contract import read_profile

ROOT = Path(__file__).resolve().parents[2]


class MeasureError(Exception):
    """Something without which there is no run could not be measured; the message ends with its last words."""


@dataclass(frozen=True)
class Bench:
    """A series of runs, and how they are measured."""

    out: Path
    model: Path
    effort: Effort
    lock: Path | None
    first: bool
    say: Callable[[str], None]
    profile: Path | None = None
    """Instead of measuring one."""

    @property
    def number(self) -> int:
        return log.number(log.read(self.out / LOG))

    def run(self) -> Run:
        """To its end. Raises `MeasureError`, `ChangedError`, `UnplannableError`, `ProfileError` (a given one)."""
        number = self.number
        folder = series.folder(self.out, number)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / PLAN).exists():
            self._register(number, folder)
        found = load(folder)
        if (found.plan.commit, found.plan.machine) != (commit(), machine()):
            message = f"run {number} began with commit {found.plan.commit} on {found.plan.machine}"
            raise ChangedError(f"{message}: go on with that, or --give-up the run")
        if not (folder / "held.json").exists():
            self._hold_out(folder, found.plan.effort)
        found = self._trials(folder, load(folder))
        entry = log.Entry(number, log.ENDED, found.digest, found.plan.commit, now(), outcome(found))
        log.append(self.out / LOG, entry)
        return found

    # ---- before the load -------------------------------------------------------------------------------------------

    def _register(self, number: int, folder: Path) -> None:
        profile = folder / "profile.json"
        if self.profile is not None and not profile.exists():
            read_profile(self.profile)
            profile.write_bytes(self.profile.read_bytes())
        if not profile.exists():
            self.say("profile: what steps take on this machine, a minute or two")
            size = ["--dtype", "bfloat16", "--max-model-len", str(steps.MAX_MODEL_LEN)]
            room = ["--kv-cache-memory", str(KV_BYTES), "--out", str(profile)]
            self._call(["-m", "semipd_engine.cli", "profile", str(self.model), *size, *room], folder / "profile.log")
        if not (folder / "alone.json").exists():
            write(folder / "alone.json", self._alone(number, folder))
        digest = hashlib.sha256(profile.read_bytes()).hexdigest()
        unloaded = json.loads((folder / "alone.json").read_text())
        self.say("prediction: knees and rates, simulated from the profile")
        about = {"commit": commit(), "machine": machine(), "at": now()}
        planned = plan.plan(read_profile(profile), digest, unloaded, self.effort, number=number, **about)
        sealed = seal(folder / PLAN, planned.as_json())
        log.append(self.out / LOG, log.Entry(number, log.BEGUN, sealed, planned.commit, planned.at))
        self.say(f"run {number}: {folder / PLAN}, sha256 {sealed}")

    def _alone(self, number: int, folder: Path) -> dict[str, float]:
        count = self.effort.alone
        wanted = crowd(1.0, count, number + 500_000)
        for trace in dict.fromkeys(ORDER):
            wanted += plan.stretch(trace, 1.0, count, number + 500_000)
        with Servers(self.model, folder, Target()) as servers, alone(self.lock, self.first):
            url = servers.get(plan.WHOLE, KNEE).url
            records = [asyncio.run(replay([replace(one, at=0.0)], url))[0] for one in wanted]
        if bad := [record.error for record in records if not record.ok or record.ttft is None]:
            raise MeasureError(f"a request that was alone failed: {bad[0]}")
        ttfts = [record.ttft for record in records if record.ttft is not None]
        tpots = [record.tpot for record in records if record.tpot is not None]
        return {"ttft_ms": 1e3 * sum(ttfts) / len(ttfts), "tpot_ms": 1e3 * sum(tpots) / len(tpots)}

    def _hold_out(self, folder: Path, effort: Effort) -> None:
        self.say("held-out steps")
        asked = [str(self.model), str(folder / "profile.json"), str(folder / "held.json")]
        self._call(["-m", "bench.slo.steps", *asked, "--points", str(effort.held_out)], folder / "held.log")

    def _call(self, words: Sequence[str], output: Path) -> None:
        """A program of ours, with its progress bar on the terminal and else its words in a file."""
        with alone(self.lock, self.first), ExitStack() as stack:
            shown = None if sys.stderr.isatty() else stack.enter_context(output.open("wb"))
            found = subprocess.run([sys.executable, *words], stdout=shown, stderr=shown, cwd=ROOT, check=False)
        if found.returncode:
            last = output.read_text(errors="replace")[-600:] if shown else "its last words are above"
            raise MeasureError(f"{' '.join(words[:3])} ended with {found.returncode}: {last}")

    # ---- under load ------------------------------------------------------------------------------------------------

    def _trials(self, folder: Path, found: Run) -> Run:
        target = Target(ttft=found.plan.ttft_ms, tpot=found.plan.tpot_ms)
        with (
            tempfile.TemporaryDirectory(prefix="bench-slo-") as name,
            watching(Path(name)) as watch,
            Servers(self.model, folder, target) as servers,
            tqdm(total=most(found), desc="bench-slo", unit="trial", disable=not sys.stderr.isatty()) as bar,
        ):
            began = time.monotonic()
            while left := found.left():
                sample = self._take(left[0], found, servers, watch)
                append(sample, folder / "samples.jsonl")
                found = replace(found, samples=[*found.samples, sample])
                bar.total = len(found.samples) + most(found)
                bar.update()
                shown = sample.error.splitlines()[0] if sample.error else said(sample.figures)
                minutes = (time.monotonic() - began) / max(1, bar.n) * most(found) / 60
                turn = sample.turn
                self.say(f"[{most(found)} trials left, {minutes:.0f} min] {turn.group} {turn.contender}: {shown}")
        return found

    def _take(self, turn: Turn, found: Run, servers: Servers, watch: Watch) -> Sample:
        load, at, began = round(os.getloadavg()[0], 1), now(), time.monotonic()
        figures, error = dict[str, float](), ""
        try:
            server = servers.get(turn.contender, turn.group)
            with alone(self.lock, self.first):
                began = time.monotonic()
                asyncio.run(server.put_in_force(contenders.split(turn.contender)))
                figures = dict(_ask(turn, found.plan, server))
            if turn.contender == AUTO:
                moves, measured = contenders.auto_says(server.place.folder)
                figures |= {"moves": float(moves), "profile_measured": float(measured == "measured")}
        except LOST as reason:
            error = f"{type(reason).__name__}: {reason}"
        end = time.monotonic()
        seconds, others = round(end - began, 1), watch.others(began, end)
        about = (found.digest, found.plan.at, commit(), at, seconds, load, others, self.first)
        return Sample(turn, figures, error, *about)


class Servers:
    """Those that have been asked, kept: an idle one takes next to nothing. Auto begins anew with each stage."""

    def __init__(self, model: Path, folder: Path, target: Target) -> None:
        self._model, self._folder, self._target = model, folder, target
        self._up: dict[str, tuple[Running, ExitStack]] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-slo-")
        self._starts = 0

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._up):
            self._end(name)
        self._scratch.cleanup()

    def get(self, arm: str, stage: str) -> Running:
        """It answers, and is warm. Raises what a start raises."""
        server = contenders.server(arm, self._folder / "profile.json")
        name = f"{server.name}-{stage}" if arm == AUTO else server.name
        if name in self._up:
            if self._up[name][0].alive:
                return self._up[name][0]
            self._end(name)
        for other in [other for other in self._up if arm == AUTO and other.startswith(f"{server.name}-")]:
            self._end(other)
        self._starts += 1
        with ExitStack() as stack:
            place = Path(self._scratch.name) / f"{name}-{self._starts}"
            log_file = self._folder / "logs" / f"{name}-{self._starts}.log"
            found = stack.enter_context(running(server, self._model, place, log_file, self._target))
            asyncio.run(warm_up(found.url))
            self._up[name] = found, stack.pop_all()
        return found

    def _end(self, name: str) -> None:
        self._up.pop(name)[1].close()


def _ask(turn: Turn, planned: Plan, server: Running) -> Figures:
    """Raises what `replay` raises, TimeoutError of a server that does not come to an end, and `UnusableError`."""
    rate = float(turn.part.removesuffix("/s")) if turn.group == KNEE else 0.0
    load = planned.crowd(rate) if turn.group == KNEE else planned.load(turn.group, turn.round)
    asked = salted(load, seed_of(turn, planned.number))

    async def answers() -> list[Record]:
        await asyncio.sleep(SETTLE_SECONDS)
        async with asyncio.timeout(4 * asked[-1].at + 3 * SILENCE_SECONDS):
            return await replay(asked, server.url, silence_seconds=SILENCE_SECONDS)

    return figures_of(asyncio.run(answers()), Target(ttft=planned.ttft_ms, tpot=planned.tpot_ms), rate)


def figures_of(records: Sequence[Record], target: Target, rate: float = 0.0) -> Figures:
    """Raises `UnusableError`: nothing was sent. Who failed has met nothing."""
    if not records:
        raise UnusableError("no request was sent")
    met = [target.met_by(record) for record in records]
    found = {
        "rate": rate,
        "requests": float(len(met)),
        "met": float(sum(met)),
        "met_percent": 100 * sum(met) / len(met),
    }
    for label in sorted({record.label for record in records} - {""}):
        mine = [kept for kept, record in zip(met, records, strict=True) if record.label == label]
        found[f"met_percent {label}"] = 100 * sum(mine) / len(mine)
    seen = {
        "p90_ttft_ms": quantile([record.ttft for record in records if record.ttft is not None], 90),
        "p90_tpot_ms": quantile([record.tpot for record in records if record.tpot is not None], 90),
        "late_p99_ms": quantile([record.late for record in records], 99),
    }
    found |= {name: 1e3 * value for name, value in seen.items() if value is not None}
    return found | {"failed": float(sum(not record.ok for record in records))}


def most(found: Run) -> int:
    """Trials that are left, if every knee takes as many as it may."""
    waiting = found.left()
    open_knees = {turn.contender: turn.round for turn in waiting if turn.group == KNEE}
    others = len(waiting) - len(open_knees)
    return others + sum(found.plan.effort.trials - made for made in open_knees.values())


def minutes(effort: Effort) -> float:
    """Of a whole run on two cores, about."""
    arms = len(plan.ARMS)
    knees = len(plan.PREDICTED) * (effort.trials - 1) * (effort.requests / 2.2 + 3)
    still, shift = effort.rounds * arms * (effort.still_seconds + 4), arms * (3 * effort.phase_seconds + 4)
    before = 100 + 30 + 4 * min(effort.held_out, len(steps.POINTS))
    return (before + knees + still + shift + 60) / 60


def said(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if value)


def write(path: Path, content: object) -> None:
    """Whole or not at all."""
    fresh = path.with_name(path.name + ".fresh")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(path)
