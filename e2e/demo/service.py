"""What serves in the demo, as the acts see it: an engine by itself, and one SemiPDService, wherever it runs.

`Embedded` is `semipd run` on a manifest of the demo's own; `Deployed` is the same manifest in a cluster.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event
from typing import Protocol

import psutil
import yaml

from bench.traffic.client import replay_now
from bench.traffic.plan import Request
from bench.traffic.records import Record
from e2e.lib import service
from e2e.lib.kube import ROOT, Object
from e2e.lib.process import answers, free_port, running
from e2e.lib.service import condition, ready
from e2e.lib.waiting import wait_until
from semipd_operator.render.merge import merge

Send = Callable[[Sequence[Request]], list[Record]]
BIN = Path(sys.executable).parent
"""The virtual environment's programs."""
START_SECONDS = 120


class Service(Protocol):
    where: str
    """For check names: "without Kubernetes" or "through the Service"."""

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Event | None = None) -> list[Record]:
        """`bench.traffic.replay`, blocking."""

    def get(self) -> Object:
        """The object with its status, as `kubectl get -o json` shows it; {} while there is none."""

    def patch(self, spec: Object) -> None:
        """JSON merge patch of the spec."""

    def lives(self) -> dict[str, int]:
        """Changes when a serving process or pod was replaced or restarted."""


def manifest(uri: str) -> Object:
    """examples/cpu.yaml with the demo's model."""
    found: Object = yaml.safe_load((ROOT / "examples" / "cpu.yaml").read_text())
    found["spec"]["model"]["uri"] = uri
    return found


def applied(obj: Object) -> tuple[int, int] | None:
    """status.partition.applied as (prefill, decode) in percent."""
    shares = obj.get("status", {}).get("partition", {}).get("applied")
    return (shares["prefillPercent"], shares["decodePercent"]) if shares else None


def decisions(obj: Object) -> list[Object]:
    """Newest first."""
    return list(obj.get("status", {}).get("partition", {}).get("decisions", ()))


def wait_for(
    service: Service, true: Callable[[Object], bool], timeout_s: float, what: str, *, kind: str = "Ready"
) -> tuple[Object, float]:
    """The object of which it is true, and the seconds that it took. Raises `NotInTime` with the words of the condition
    `kind`."""
    began = time.monotonic()

    def reached() -> Object | None:
        obj = service.get()
        return obj if true(obj) else None

    def told() -> str:
        said = condition(service.get(), kind)
        return f"{what} ({said.get('reason', 'no status')}: {said.get('message', '')})"

    return wait_until(reached, timeout_s, told, every_s=0.2), time.monotonic() - began


class Load:
    """A plan on its way to a service, by a client in a thread of its own."""

    def __init__(self, service: Service, plan: Sequence[Request], start: float) -> None:
        """`start`: the origin of the plan's times, of time.monotonic."""
        self._stop = Event()
        pool = ThreadPoolExecutor(1, "load")
        self._sent: Future[list[Record]] = pool.submit(service.send, plan, start, self._stop)
        pool.shutdown(wait=False)

    def stop(self) -> None:
        """Nothing more is sent; what was sent is still answered."""
        self._stop.set()

    def running(self) -> bool:
        return not self._sent.done()

    def records(self) -> list[Record]:
        """Waits for the last answer. Raises what the client raised."""
        return self._sent.result()


@contextmanager
def serve(model: Path, log: Path, flags: dict[str, object], *switches: str) -> Iterator[str]:
    """`semipd-engine serve` on a free port; yields its address once it is ready. Raises `NotRunning`."""
    with tempfile.TemporaryDirectory(prefix="semipd-demo-") as folder:
        fixed: dict[str, object] = {
            "model": model,
            "port": (port := free_port()),
            "run-dir": folder,
            "device": "cpu",
            "drain-seconds": 1,
        }
        words = [word for name, value in (fixed | flags).items() for word in (f"--{name}", str(value))]
        url = f"http://127.0.0.1:{port}"
        command = [str(BIN / "semipd-engine"), "serve", *words, *switches]
        with running(command, log, lambda: answers(f"{url}/ready"), START_SECONDS):
            yield url


class Embedded:
    """`semipd run`; its manifest is watched, so a change of the file is a change of the spec."""

    where = "without Kubernetes"

    def __init__(self, model: Path, folder: Path) -> None:
        self._file, self._status, self._log = folder / "service.yaml", folder / "status.json", folder / "semipd-run.log"
        self._manifest = manifest(f"file://{model}")
        self._port = free_port()
        self._url = f"http://127.0.0.1:{self._port}"
        self._pid = 0

    @contextmanager
    def run(self) -> Iterator[Embedded]:
        """Ready when it yields, ended after it. Raises `NotRunning`."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._status.unlink(missing_ok=True)
        self.patch({})
        files = ["-f", str(self._file), "--status-file", str(self._status)]
        command = [str(BIN / "semipd"), "run", *files, "--port", str(self._port)]
        with running(command, self._log, self._serves, START_SECONDS) as process:
            self._pid = process.pid
            yield self

    def _serves(self) -> bool:
        return ready(self.get()) and answers(f"{self._url}/ready")

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Event | None = None) -> list[Record]:
        return replay_now(plan, self._url, start, stop)

    def get(self) -> Object:
        found: Object = json.loads(self._status.read_text()) if self._status.exists() else {}
        return found

    def patch(self, spec: Object) -> None:
        self._manifest = merge(self._manifest, {"spec": spec})
        fresh = self._file.with_suffix(".fresh")
        fresh.write_text(yaml.safe_dump(self._manifest, sort_keys=False))
        fresh.replace(self._file)

    def lives(self) -> dict[str, int]:
        """PIDs below `semipd run`: a restarted agent or engine is another one."""
        return {str(child.pid): 0 for child in psutil.Process(self._pid).children(recursive=True)}


class Deployed(service.Service):
    """A SemiPDService in a cluster, its requests sent through its Service."""

    where = "through the Service"
    forwarded = ""
    """Where a port is forwarded to it, for a client that cannot reach its cluster IP."""

    def url(self) -> str:
        return self.forwarded or super().url()

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Event | None = None) -> list[Record]:
        url = self.url()
        with self.cluster.network():
            return replay_now(plan, url, start, stop)

    def images(self) -> set[str]:
        """Images of the engine containers of its pods."""
        containers = [container for pod in self.pods() for container in pod["spec"]["containers"]]
        return {container["image"] for container in containers if container["name"] == "engine"}

    def forward(self, log: Path) -> AbstractContextManager[object]:
        """Inside the block clients reach it at a port of this machine. Raises `NotRunning`."""
        port = free_port()
        self.forwarded = f"http://127.0.0.1:{port}"
        words = ["-n", self.namespace, "port-forward", f"service/{self.name}", f"{port}:8000"]
        return running([*self.cluster.prefix, "kubectl", *words], log, lambda: answers(f"{self.url()}/health"), 20)
