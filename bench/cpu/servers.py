"""Who takes part: how each server is started, when it is ready, and that it is gone afterwards.

A contender is a server, or one of ours under a certain split; splits move while the server runs. Knows nothing of what
is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.cpu.environments import VLLM, Environment, make
from semipd_agent.engine_client import EngineClient
from semipd_engine.contract import EngineSnapshot, SetPartition, Split
from semipd_engine.cpu_plan import cpu_plan

KV_BYTES, MAX_MODEL_LEN = 1 << 30, 8192
"""Of every server: as much room for keys and values, and the same longest request."""
READY_SECONDS = 600.0


@dataclass(frozen=True)
class Place:
    """Where a server finds what it needs."""

    model: Path
    port: int
    folder: Path
    """Its own: sockets, caches, manifests."""


@dataclass(frozen=True)
class Server:
    name: str
    command: Callable[[Place], list[str]]
    environment: Environment | None = None
    """None: ours."""
    variables: Callable[[Place], Mapping[str, str]] = lambda _: {}


def _ours(*flags: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        program = [
            sys.executable,
            "-m",
            "semipd_engine.cli",
            "serve",
            "--model",
            str(place.model),
            "--dtype",
            "bfloat16",
        ]
        size = ["--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-memory", str(KV_BYTES)]
        return [*program, *size, "--port", str(place.port), "--run-dir", str(place.folder / "run"), *flags]

    return command


def _auto(place: Place) -> list[str]:
    """The whole product without Kubernetes: agent, policy and engine."""
    engine = {"device": "cpu", "dtype": "bfloat16", "kvCacheMemory": "1Gi", "maxModelLen": MAX_MODEL_LEN}
    spec = {
        "model": {"uri": f"file://{place.model}", "servedName": "model"},
        "engine": engine,
        "slo": {"ttftMilliseconds": AUTO_TTFT_MS, "tpotMilliseconds": AUTO_TPOT_MS},
        "partition": {"mode": "Auto"},
    }
    manifest = place.folder / "auto.yaml"
    content = {"apiVersion": "semipd.io/v1alpha1", "kind": "SemiPDService", "metadata": {"name": "auto"}, "spec": spec}
    manifest.write_text(json.dumps(content))
    return [sys.executable, "-m", "semipd_cli", "run", "-f", str(manifest), "--port", str(place.port)]


AUTO_TTFT_MS, AUTO_TPOT_MS = 3000, 150


def _vllm(*flags: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        size = ["--dtype", "bfloat16", "--max-model-len", str(MAX_MODEL_LEN)]
        return [str(VLLM.program("vllm")), "serve", str(place.model), *size, "--port", str(place.port), *flags]

    return command


def _vllm_variables(place: Place) -> Mapping[str, str]:
    """As its CPU documentation asks for: threads bound, Intel's OpenMP (which comes with it) loaded first."""
    cpus = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_BYTES >> 30),
        "VLLM_CACHE_ROOT": str(VLLM.root / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": str(VLLM.root / "lib" / "libiomp5.so"),
    }


SERVERS = {
    server.name: server
    for server in (
        Server("ours", _ours()),
        Server("unified", _ours("--unified")),
        Server("auto", _auto),
        Server("vllm", _vllm(), VLLM, _vllm_variables),
        *(
            Server(f"vllm-{n}", _vllm("--max-num-batched-tokens", str(n)), VLLM, _vllm_variables)
            for n in (64, 128, 256)
        ),
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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.place.port}"

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
def running(server: Server, model: Path, folder: Path, log: Path) -> Iterator[Running]:
    """The server, ready to answer; ended with all its processes on the way out. Its output goes to `log`.

    Raises `ServerFailedError`.
    """
    if server.environment:
        make(server.environment)
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    place = Place(model, _free_port(), folder)
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
        yield Running(server, place, process, time.monotonic() - began)
    finally:
        _end(process)


def _wait_until_ready(server: Server, place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with httpx.Client(base_url=f"http://127.0.0.1:{place.port}", trust_env=False, timeout=60) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(httpx.HTTPError, ValueError, LookupError):
                name = client.get("/v1/models").json()["data"][0]["id"]
                asked = {"model": name, "prompt": "The river runs", "max_tokens": 1}
                if client.post("/v1/completions", json=asked).status_code == 200:
                    return
            time.sleep(0.1)
    reason = f"ended with {process.returncode}" if process.returncode is not None else "is not ready"
    raise ServerFailedError(f"{server.name} {reason}; {log} ends with:\n{log.read_text(errors='replace')[-1200:]}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server alone, so that it ends its own; after 20 s SIGKILL to its group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
