"""Carries out turns: keeps the servers of a group running, asks them by turns, writes a sample after each.

What has been measured stays: a run that was cut off, or is called again with more parts, does what is missing.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from bench.cpu.parts import WORKLOADS, Figures, Part, UnusableError, salted
from bench.cpu.schedule import LIMITS, Sample, Turn, append
from bench.cpu.servers import SERVERS, Contender, Running, ServerFailedError, running
from bench.traffic import ClientLateError, Request, assert_punctual, prompt_ids, replay
from semipd_engine.contract import Split

ROOT = Path(__file__).resolve().parents[2]
SETTLE_SECONDS = 0.5
TRIES = 2
"""A turn in which the client was late, or whose answers are not usable, is taken once more."""


def engine_digest() -> str:
    """Of the engine's and the agent's sources: samples of another engine are not ours."""
    digest = hashlib.sha256()
    for package in ("engine/semipd_engine", "agent/semipd_agent"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def seed_of(*what: object) -> int:
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1_000_000


def contender_named(name: str) -> Contender:
    server, _, split = name.partition(" ")
    if not split:
        return Contender(server)
    prefill, decode = map(int, split.split("/"))
    return Contender(server, Split(prefill=prefill, decode=decode))


@contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Nobody else who asks for this lock measures meanwhile."""
    if lock is None:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def carry_out(
    todo: Sequence[Turn],
    models: Mapping[str, Path],
    parts: Mapping[str, Part],
    out: Path,
    lock: Path | None,
    say: Callable[[str], None],
) -> None:
    """All turns, in order; a group's servers are started when its first turn comes. `lock` is held for each round."""
    digest = engine_digest()
    with tqdm(total=len(todo), desc="bench-cpu", unit="turn", disable=not sys.stderr.isatty()) as bar:

        def done(sample: Sample) -> None:
            append(sample, out / "samples.jsonl")
            shown = sample.error or ", ".join(f"{name} {value:.4g}" for name, value in sample.figures.items())
            say(f"{sample.turn.model} {sample.turn.part} {sample.turn.contender} #{sample.turn.round}: {shown}")
            bar.update()

        for (model, _), mine in groupby(todo, key=lambda turn: (turn.model, turn.group)):
            _group(list(mine), models[model], parts, out, lock, digest, done)


def _group(
    turns: Sequence[Turn],
    model: Path,
    parts: Mapping[str, Part],
    out: Path,
    lock: Path | None,
    digest: str,
    done: Callable[[Sample], None],
) -> None:
    wanted = dict.fromkeys(contender_named(turn.contender).server for turn in turns if turn.part in parts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cpu-")))
        started: dict[str, Running] = {}
        failed: dict[str, str] = {}
        for name in wanted:
            log = out / "logs" / f"{turns[0].model}-{turns[0].group}-{name}.log"
            try:
                started[name] = stack.enter_context(running(SERVERS[name], model, folder / name, log))
                asyncio.run(warm_up(started[name].url))
            except ServerFailedError as problem:
                failed[name] = str(problem)
        for _, turns_of_round in groupby(turns, key=lambda turn: turn.round):
            with alone(lock):
                for turn in turns_of_round:
                    done(_take(turn, model, parts, started, failed, digest))


def _take(
    turn: Turn,
    model: Path,
    parts: Mapping[str, Part],
    started: Mapping[str, Running],
    failed: Mapping[str, str],
    digest: str,
) -> Sample:
    contender = contender_named(turn.contender)
    load, at = round(os.getloadavg()[0], 1), datetime.now(UTC).isoformat(timespec="seconds")
    if contender.server in failed:
        return Sample(turn, {}, failed[contender.server], load, digest, at)
    try:
        if turn.part in parts:
            figures = asyncio.run(ask(turn, parts[turn.part], started[contender.server], contender.split))
        else:
            figures = probe(turn.part, model)
    except (UnusableError, ClientLateError, TimeoutError, subprocess.SubprocessError) as reason:
        return Sample(turn, {}, f"{type(reason).__name__}: {reason}", load, digest, at)
    return Sample(turn, dict(figures), "", load, digest, at)


async def warm_up(url: str) -> None:
    """Every form of step that the parts will bring, so that nothing is compiled or touched for the first time later."""
    shapes: Iterable[tuple[int, int, int]] = ((1, 1024, 8), (1, 2000, 8), (8, 128, 16), (2, 64, 16))
    for count, prompt, tokens in shapes:
        await replay([Request(0.0, tokens, prompt_ids(prompt, seed=10**9 + prompt + n)) for n in range(count)], url)


async def ask(turn: Turn, part: Part, server: Running, split: Split | None) -> Figures:
    """Arrivals and lengths are the same for every contender of a round; no prompt is asked of a server twice.

    Raises what the last try raised.
    """
    await server.put_in_force(split)
    workload = WORKLOADS[turn.model]
    plan = part.plan(workload, seed_of(turn.model, turn.part, turn.round))
    for attempt in range(TRIES):
        await asyncio.sleep(SETTLE_SECONDS)
        records = await replay(salted(plan, seed_of(turn, attempt)), server.url)
        try:
            assert_punctual(records)
            return part.read(workload, records)
        except (UnusableError, ClientLateError):
            if attempt + 1 == TRIES:
                raise
    raise AssertionError("no try was made")


def probe(name: str, model: Path) -> Figures:
    """One of `bench.cpu.probes`. Raises subprocess.SubprocessError."""
    command = [sys.executable, "-m", "bench.cpu.probes", name, *([] if name == LIMITS else [str(model)])]
    began = time.monotonic()
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, cwd=ROOT)
    return {**json.loads(found.stdout.splitlines()[-1]), "seconds": time.monotonic() - began}
