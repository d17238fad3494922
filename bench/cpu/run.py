"""Carries out turns: keeps the servers of a group running, asks them by turns, writes a sample after each.

What has been measured stays: a run that was cut off, or is called again with more parts, does what is missing. A
server that dies, or never comes up, costs its samples, which say why; the run goes on.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import httpx
from tqdm import tqdm

from bench.cpu.figures import Figures, UnusableError
from bench.cpu.identity import Identity, commit
from bench.cpu.machine import Watch, foremost, resting, watching
from bench.cpu.parts import Part
from bench.cpu.plans import WORKLOADS, salted
from bench.cpu.schedule import LIKELIHOOD, LIMITS, MEMORY, Sample, Turn, append
from bench.cpu.servers import SERVERS, Running, ServerFailedError, contender_named, running
from bench.traffic import ClientLateError, Request, assert_punctual, prompt_ids, replay
from bench.traffic.client import ServerError
from semipd_agent.engine_client import EngineUnreachable
from semipd_engine.contract import Split

ROOT = Path(__file__).resolve().parents[2]
SETTLE_SECONDS = 0.5
TRIES = 2
"""A turn in which the client was late, or whose answers say too little, is taken once more. One in which a stream
failed is not: the failure would be gone."""
MOST_STARTS = 2
"""A server that has died so often within a group is not started again."""
SILENCE_SECONDS = 60.0
PROBE_SECONDS = {LIMITS: 12.0, MEMORY: 25.0, LIKELIHOOD: 45.0}
"""About, on two cores."""
PROBE_TIMEOUT_SECONDS = 600.0
PROBE_ENDING_SECONDS = 60.0
"""For a probe that is told to end, and its server."""
LOST = (
    *(UnusableError, ClientLateError, ServerFailedError, ServerError, EngineUnreachable, TimeoutError, OSError),
    *(httpx.HTTPError, subprocess.SubprocessError),
)
"""What costs a sample, and not the run."""


def seed_of(*what: object) -> int:
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1_000_000


@contextmanager
def alone(lock: Path | None, first: bool = False) -> Iterator[None]:
    """Nobody else who asks for this lock measures meanwhile; `first`: and others compute when we do not."""
    with ExitStack() as stack:
        if lock is not None:
            fcntl.flock(stack.enter_context(lock.open("w")), fcntl.LOCK_EX)
        if first:
            stack.enter_context(foremost())
        yield


def expected_seconds(todo: Iterable[Turn], parts: Mapping[str, Part]) -> float:
    """Of turns that are still to do, with the starts of their servers; on two cores, about."""
    total = 0.0
    for _, group in groupby(todo, key=lambda turn: (turn.group, turn.model)):
        turns = list(group)
        servers = {contender_named(turn.contender).server for turn in turns if turn.part in parts}
        total += sum(SERVERS[name].start_seconds for name in servers if name in SERVERS)
        total += sum(_turn_seconds(turn, parts) for turn in turns)
    return total


def _turn_seconds(turn: Turn, parts: Mapping[str, Part]) -> float:
    return SETTLE_SECONDS + parts[turn.part].seconds if turn.part in parts else PROBE_SECONDS[turn.part]


class Servers:
    """Those of one group and model; one that has died is started again, so that the next sample is not lost, too."""

    def __init__(self, model: Path, workload: str, folder: Path, logs: Path) -> None:
        self._model, self._target = model, WORKLOADS[workload].target
        self._folder, self._logs = folder, logs
        self._up: dict[str, tuple[Running, ExitStack]] = {}
        self._starts: dict[str, int] = {}
        self._reasons: dict[str, str] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._up):
            self._end(name)

    def get(self, name: str) -> Running:
        """It answers, and is warm. Raises `ServerFailedError`: it is not to be had, or has died too often."""
        if name in self._up:
            server, _ = self._up[name]
            if server.alive:
                return server
            self._reasons[name] = server.last_words()
            self._end(name)
        if self._starts.get(name, 0) == MOST_STARTS:
            raise ServerFailedError(f"not started a third time: {self._reasons[name]}")
        number = self._starts[name] = self._starts.get(name, 0) + 1
        stack = ExitStack()
        log = self._logs / f"{name}{f'-{number}' if number > 1 else ''}.log"
        try:
            server = stack.enter_context(
                running(SERVERS[name], self._model, self._folder / f"{name}-{number}", log, self._target)
            )
            asyncio.run(warm_up(server.url))
        except LOST as problem:
            self._reasons[name] = str(problem) or type(problem).__name__
            stack.close()
            raise ServerFailedError(self._reasons[name]) from problem
        self._up[name] = server, stack
        return server

    def rest(self, but: str = "") -> AbstractContextManager[None]:
        """All but this one get no CPU meanwhile."""
        return resting([server.process.pid for name, (server, _) in self._up.items() if name != but])

    def _end(self, name: str) -> None:
        _, stack = self._up.pop(name)
        stack.close()


def carry_out(
    todo: Sequence[Turn],
    out: Path,
    lock: Path | None,
    identity: Identity,
    say: Callable[[str], None],
    first: bool = False,
) -> None:
    """All turns, in order; a group's servers are started when its first turn comes. `lock` is held for each round;
    `first`: in which others' processes weigh little."""
    models, parts = identity.models, identity.parts
    run, tree = datetime.now(UTC).isoformat(timespec="seconds"), commit()
    began, total = time.monotonic(), expected_seconds(todo, parts)
    left = list(todo)
    with (
        tempfile.TemporaryDirectory(prefix="bench-cpu-") as name,
        watching(Path(name)) as watch,
        tqdm(total=round(total), desc="bench-cpu", unit="s", disable=not sys.stderr.isatty()) as bar,
    ):

        def done(sample: Sample) -> None:
            stamped = replace(sample, key=identity.key(sample.turn), run=run, commit=tree, foremost=first)
            append(stamped, out / "samples.jsonl")
            left.remove(sample.turn)
            behind = total - (ahead := expected_seconds(left, parts))
            pace = (time.monotonic() - began) / behind if behind else 1.0
            shown = f"LOST: {sample.error}" if sample.error else _shown(sample.figures)
            turn = f"{sample.turn.model} {sample.turn.part} {sample.turn.contender} #{sample.turn.round}"
            say(f"[{len(todo) - len(left)}/{len(todo)}, {ahead * pace / 60:.0f} min left] {turn}: {shown}")
            bar.update(round(behind) - bar.n)

        for (group, model), mine in groupby(todo, key=lambda turn: (turn.group, turn.model)):
            logs = out / "logs" / f"{model}-{group}"
            with Servers(models[model], model, Path(name) / f"{model}-{group}", logs) as servers:
                _group(list(mine), models[model], parts, servers, lambda: alone(lock, first), watch, done)


def _shown(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _group(
    turns: Sequence[Turn],
    model: Path,
    parts: Mapping[str, Part],
    servers: Servers,
    undisturbed: Callable[[], AbstractContextManager[None]],
    watch: Watch,
    done: Callable[[Sample], None],
) -> None:
    for name in dict.fromkeys(contender_named(turn.contender).server for turn in turns if turn.part in parts):
        try:  # all before the first sample: a start would disturb it
            servers.get(name)
        except ServerFailedError as problem:
            print(f"bench-cpu: {str(problem).splitlines()[0]}", file=sys.stderr, flush=True)
    for _, turns_of_round in groupby(turns, key=lambda turn: turn.round):
        with undisturbed():
            for turn in turns_of_round:
                done(_take(turn, model, parts, servers, watch))


def _take(turn: Turn, model: Path, parts: Mapping[str, Part], servers: Servers, watch: Watch) -> Sample:
    contender = contender_named(turn.contender)
    load, at, began = round(os.getloadavg()[0], 1), datetime.now(UTC).isoformat(timespec="seconds"), 0.0
    figures: Figures = {}
    error, server = "", None
    try:
        if turn.part in parts:
            server = servers.get(contender.server)
            began = time.monotonic()
            with servers.rest(but=contender.server):
                figures = asyncio.run(ask(turn, parts[turn.part], server, contender.split))
        else:
            began = time.monotonic()
            with servers.rest():
                figures = probe(turn.part, model)
    except LOST as reason:
        error = f"{type(reason).__name__}: {reason}"
        if server is not None and server.ended(SETTLE_SECONDS):
            error = f"{server.last_words()}\n{error}"
    end = time.monotonic()
    began = began or end
    seconds, others = round(end - began, 1), watch.others(began, end)
    return Sample(turn, dict(figures), error, at=at, seconds=seconds, load=load, others=others)


async def warm_up(url: str) -> None:
    """Every form of step that the parts will bring, so that nothing is compiled or touched for the first time later.

    Raises what `replay` raises, and `UnusableError`.
    """
    shapes: Iterable[tuple[int, int, int]] = ((1, 1024, 8), (1, 2000, 8), (8, 128, 16), (2, 64, 16))
    for count, prompt, tokens in shapes:
        plan = [Request(0.0, tokens, prompt_ids(prompt, seed=10**9 + prompt + n)) for n in range(count)]
        if bad := [record.error for record in await replay(plan, url) if not record.ok]:
            raise UnusableError(f"a first request: {bad[0] or 'the stream ended too early'}")


async def ask(turn: Turn, part: Part, server: Running, split: Split | None) -> Figures:
    """Arrivals and lengths are the same for every contender of a round; no prompt is asked of a server twice.

    Raises what the last try raised, and of a failed stream the first; TimeoutError of a server that keeps the plan
    from ending.
    """
    await server.put_in_force(split)
    workload = WORKLOADS[turn.model]
    plan = part.plan(workload, seed_of(turn.model, turn.part, turn.round))
    for attempt in range(TRIES):
        await asyncio.sleep(SETTLE_SECONDS)
        asked = salted(plan, seed_of(turn, attempt))
        async with asyncio.timeout(2 * part.seconds + 3 * SILENCE_SECONDS):
            records = await replay(asked, server.url, silence_seconds=SILENCE_SECONDS)
        try:
            assert_punctual(records)
            return part.read(workload, records)
        except (UnusableError, ClientLateError) as problem:
            failed = isinstance(problem, UnusableError) and any(not r.ok or not r.token_times for r in records)
            if failed or attempt + 1 == TRIES or not server.alive:
                raise
    raise AssertionError("no try was made")


def probe(name: str, model: Path) -> Figures:
    """One of `bench.cpu.probes`. Raises subprocess.SubprocessError, and `UnusableError` with its last words.

    It may have a server: interrupted, or after too long, it is told once, and waited for, so that none is left behind.
    Where that, too, takes too long it is killed.
    """
    command = [sys.executable, "-m", "bench.cpu.probes", name, str(model)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, process_group=0) as process:
        try:
            said, errors = process.communicate(timeout=PROBE_TIMEOUT_SECONDS)
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=PROBE_ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode:
        raise UnusableError(f"{name} ended with {process.returncode}: {errors.strip().rpartition(chr(10))[2][-600:]}")
    figures: dict[str, float] = json.loads(said.splitlines()[-1])
    return figures
