"""The demo's SemiPDService in a cluster. Knows nothing of what the acts show."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.traffic import plan as plans
from bench.traffic import records
from bench.traffic.plan import Request
from bench.traffic.records import Record
from e2e.demo.outcome import DemoError
from e2e.demo.paths import OUT, ROOT
from e2e.lib import service
from e2e.lib.kube import Kube, Object


class Deployed(service.Service):
    """A SemiPDService in the cluster, its requests sent through its Service."""

    where = "through the Service"

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        super().__init__(kube, namespace, name)
        self._url = ""
        self._sends = itertools.count(1)

    def use(self, url: str) -> None:
        """Reach it at `url` from now on."""
        self._url = url

    def url(self) -> str:
        """Its cluster IP, for a client inside the local cluster, unless `use` said another."""
        self._url = self._url or super().url()
        return self._url

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Path | None = None) -> list[Record]:
        """By a client that runs where the cluster IP can be reached; the monotonic clock is the same there."""
        number = next(self._sends)
        todo, done = OUT / "sent" / f"{number}-plan.jsonl", OUT / "sent" / f"{number}-records.jsonl"
        plans.write(plan, todo)
        done.unlink(missing_ok=True)
        seconds = max(request.at for request in plan) + 300
        command = [sys.executable, "-m", "bench.traffic", "plan", self.url(), str(todo), "--out", str(done)]
        command += ["--start", str(start)] if start is not None else []
        command += ["--stop", str(stop)] if stop is not None else []
        answer = subprocess.run(
            [*self.cluster.prefix, *command], cwd=ROOT, capture_output=True, text=True, timeout=seconds
        )
        if not done.exists():
            raise DemoError(f"the client failed: {answer.stderr.strip()[-500:]}")
        return records.read(done)

    def read(self) -> Object:
        return self.get()

    def merge(self, spec: Object) -> None:
        self.patch(spec)

    def images(self) -> set[str]:
        """Images of the engine containers of its pods."""
        containers = [container for pod in self.pods() for container in pod["spec"]["containers"]]
        return {container["image"] for container in containers if container["name"] == "engine"}

    def identity(self) -> tuple[str, ...]:
        """uid and restart count of each pod."""

        def one(pod: Object) -> str:
            restarts = sum(container["restartCount"] for container in pod["status"]["containerStatuses"])
            return f"{pod['metadata']['name']} {pod['metadata']['uid']} restarts {restarts}"

        return tuple(sorted(one(pod) for pod in self.pods()))
