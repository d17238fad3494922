"""Who takes part: how each server is started, when it is ready, and that it is gone afterwards.

A contender is a server, or one of ours under a certain split; splits move while the server runs. Knows nothing of what
is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.cpu import llama, vllm
from bench.cpu.environments import LLAMA, TRANSFORMERS, VLLM, Environment, UnavailableError, make
from bench.cpu.machine import cpu_flags
from bench.traffic import Target, prompt_ids
from e2e.lib.models import cache_root
from e2e.lib.process import free_port
from e2e.lib.waiting import NotInTime, wait_until
from semipd_agent.engine_client import EngineClient
from semipd_engine.contract import EngineSnapshot, SetPartition, Split
from semipd_engine.cpu_plan import cpu_plan

KV_BYTES, MAX_MODEL_LEN = 1 << 30, 8192
"""Of every server: as much room for keys and values, and the same longest request."""
READY_SECONDS = 600.0
BUDGETS = (64, 128, 256, 512, 1024, 2048)
"""Tokens of a step, where prompts and streams share steps."""
NO_TARGET = Target()
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Place:
    """Where a server finds what it needs, and what it is to aim at."""

    model: Path
    port: int
    folder: Path
    """Its own: sockets, caches, manifests."""
    target: Target
    """Of the workload."""


@dataclass(frozen=True)
class Server:
    name: str
    command: Callable[[Place], list[str]]
    environment: Environment | None = None
    """None: ours."""
    variables: Callable[[Place], Mapping[str, str]] = lambda _: {}
    files: Callable[[Place], Mapping[str, str]] = lambda _: {}
    """Written into its folder before it starts: content by name."""
    prepare: Callable[[Path], object] = lambda _: None
    """Called with the model before it starts, once its environment is there."""
    start_seconds: float = 12.0
    """How long a start takes on two cores, about, with the first requests."""


def settings(server: Server, target: Target) -> list[object]:
    """All that is said to it, without what differs between clones and machines."""
    place = Place(Path("MODEL"), 0, Path("FOLDER"), target)

    def neutral(text: str) -> str:
        return text.replace(sys.executable, "python").replace(str(cache_root()), "CACHE").replace(str(ROOT), "ROOT")

    variables = {name: neutral(value) for name, value in server.variables(place).items()}
    key = server.environment.key if server.environment else ""
    return [key, [neutral(word) for word in server.command(place)], variables, dict(server.files(place))]


def _ours(*flags: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        program = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(place.model)]
        size = ["--dtype", "bfloat16", "--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-memory", str(KV_BYTES)]
        return [*program, *size, "--port", str(place.port), "--run-dir", str(place.folder / "run"), *flags]

    return command


def _one_process(budget: int) -> tuple[str, ...]:
    """As chunked prefill is elsewhere: a budget, and no bound on how long a step may take."""
    return "--unified", "--prefill-chunk-tokens", str(budget), "--max-stall-ms", "0"


def _auto(place: Place) -> list[str]:
    """The whole product without Kubernetes: agent, policy and engine."""
    return [sys.executable, "-m", "semipd_cli", "run", "-f", str(place.folder / "auto.yaml"), "--port", str(place.port)]


def _auto_files(place: Place) -> Mapping[str, str]:
    engine = {"device": "cpu", "dtype": "bfloat16", "kvCacheMemory": str(KV_BYTES), "maxModelLen": MAX_MODEL_LEN}
    spec = {
        "model": {"uri": f"file://{place.model}", "servedName": "model"},
        "engine": engine,
        "slo": {"ttftMilliseconds": place.target.ttft, "tpotMilliseconds": place.target.tpot},
        "partition": {"mode": "Auto"},
    }
    content = {"apiVersion": "semipd.io/v1alpha1", "kind": "SemiPDService", "metadata": {"name": "auto"}, "spec": spec}
    return {"auto.yaml": json.dumps(content)}


def _vllm(name: str, *flags: str) -> Server:
    def command(place: Place) -> list[str]:
        return vllm.command(place.model, place.port, MAX_MODEL_LEN, cpu_flags(), flags)

    return Server(name, command, VLLM, lambda _: vllm.variables(KV_BYTES, _cpus()), start_seconds=90)


def _llama(batch: int) -> Server:
    """Keys and values in its default, float16; streams share their room. Waiting threads sleep: spinning ones collapse
    where there are no more cores than threads."""

    def command(place: Place) -> list[str]:
        threads, room = str(len(_cpus())), ["-c", "16384", "-np", "8", "--kv-unified"]
        program = [str(LLAMA.program("llama-server")), "-m", str(llama.gguf(place.model)), "-b", str(batch)]
        return [*program, *room, "-t", threads, "-tb", threads, "--host", "127.0.0.1", "--port", str(place.port)]

    return Server(f"llama-{batch}", command, LLAMA, lambda _: {"OMP_WAIT_POLICY": "PASSIVE"}, prepare=llama.convert)


def _transformers(place: Place) -> list[str]:
    """`generate_batch`'s scheduler behind a small server of this benchmark: its own takes no token ids."""
    script = Path(__file__).with_name("batching_server.py")
    room = ["--kv-bytes", str(KV_BYTES), "--threads", str(len(_cpus()))]
    return [str(TRANSFORMERS.program("python")), str(script), str(place.model), "--port", str(place.port), *room]


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


SERVERS = {
    server.name: server
    for server in (
        Server("ours", _ours()),
        Server("unified", _ours("--unified")),
        *(Server(f"unified-{n}", _ours(*_one_process(n))) for n in BUDGETS),
        Server("auto", _auto, files=_auto_files, start_seconds=20),
        _vllm("vllm"),
        *(_vllm(f"vllm-{n}", "--max-num-batched-tokens", str(n)) for n in BUDGETS),
        *(_llama(batch) for batch in (128, 2048)),
        Server("transformers", _transformers, TRANSFORMERS, start_seconds=25),
    )
}


@dataclass(frozen=True)
class Contender:
    """A server under a split; only `ours` has one."""

    server: str
    split: Split | None = None

    @property
    def name(self) -> str:
        return f"{self.server} {self.split.prefill}/{self.split.decode}" if self.split else self.server


def contender_named(name: str) -> Contender:
    server, _, split = name.partition(" ")
    if not split:
        return Contender(server)
    prefill, decode = map(int, split.split("/"))
    return Contender(server, Split(prefill=prefill, decode=decode))


@dataclass
class Running:
    """A server that answers."""

    server: Server
    place: Place
    process: subprocess.Popen[bytes]
    started_seconds: float
    """From its start until it answered a request."""
    _epoch: int = 100
    _split: Split | None = field(default=None)

    log: Path = Path(os.devnull)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.place.port}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ended(self, within: float) -> bool:
        """It closes its connections a moment before it is gone: looked at for so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(within)
        return not self.alive

    def last_words(self) -> str:
        return f"{self.server.name} ended with {self.process.poll()}; {_tail(self.log)}"

    async def put_in_force(self, split: Split | None) -> None:
        """Returns once every worker executes under it."""
        if split is None or split == self._split:
            return
        self._epoch += 1
        client = EngineClient(self.place.folder / "run", timeout=10)
        try:
            plan = cpu_plan(split, sorted(os.sched_getaffinity(0)))
            await client.set_partition(SetPartition(split_epoch=self._epoch, plan=plan))
            async with asyncio.timeout(30):
                while not in_force(await client.snapshot(0), self._epoch):  # noqa: ASYNC110  # another process's state
                    await asyncio.sleep(0.05)
        finally:
            await client.close()
        self._split = split


def in_force(snapshot: EngineSnapshot, epoch: int) -> bool:
    """Exactly this epoch: a later one, which somebody else has put in force, would be another split."""
    return snapshot.split_epoch == epoch and all(worker.applied_epoch == epoch for worker in snapshot.workers)


class ServerFailedError(Exception):
    """It did not come up; the message ends with its last words."""


@contextmanager
def running(server: Server, model: Path, folder: Path, log: Path, target: Target = NO_TARGET) -> Iterator[Running]:
    """The server, ready to answer; ended with all its processes on the way out. Its output goes to `log`.

    Raises `ServerFailedError`.
    """
    try:
        if server.environment:
            make(server.environment)
        server.prepare(model)
    except (UnavailableError, subprocess.SubprocessError, OSError) as problem:
        raise ServerFailedError(f"{server.name} cannot be had: {problem}") from problem
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    place = Place(model, free_port(), folder, target)
    for name, content in server.files(place).items():
        (folder / name).write_text(content)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            server.command(place),
            env={**os.environ, **server.variables(place)},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder if server.environment else None,
            process_group=0,
        )
    try:
        _wait_until_ready(server, place, process, log)
        yield Running(server, place, process, time.monotonic() - began, log=log)
    finally:
        _end(process)


def _wait_until_ready(server: Server, place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{place.port}", trust_env=False, timeout=60) as client,
        suppress(NotInTime),
    ):
        wait_until(lambda: process.poll() is not None or _answers(client), READY_SECONDS, every_s=0.1)
        if process.poll() is None:
            return
    reason = f"ended with {process.returncode}" if process.returncode is not None else "is not ready"
    raise ServerFailedError(f"{server.name} {reason}; {_tail(log)}")


def _answers(client: httpx.Client) -> bool:
    """It completes a prompt; being there is not enough."""
    with suppress(httpx.HTTPError, ValueError, LookupError):
        name = client.get("/v1/models").json()["data"][0]["id"]
        asked = {"model": name, "prompt": list(prompt_ids(8, seed=0)), "max_tokens": 1}
        return client.post("/v1/completions", json=asked).status_code == 200
    return False


def _tail(log: Path) -> str:
    return f"{log} ends with:\n{log.read_text(errors='replace')[-1200:]}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server alone, so that it ends its own; after 20 s SIGKILL to its group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
