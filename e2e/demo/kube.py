"""kubectl and helm for the demo's cluster, and a SemiPDService deployed there.

The local cluster lives in namespaces of its own: each command runs inside, through `e2e/cluster/cluster exec`. An
existing cluster needs no prefix. Knows nothing of what the acts show.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from e2e.demo.outcome import DemoError
from e2e.demo.paths import OUT, ROOT
from e2e.demo.service import Manifest
from e2e.traffic import plan as plans
from e2e.traffic import records
from e2e.traffic.plan import Request
from e2e.traffic.records import Record

CLUSTER = [sys.executable, str(ROOT / "e2e" / "cluster" / "cluster")]


class Kube:
    """Commands against one cluster; `prefix` is what makes them run where it can be reached."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.prefix = list(prefix)

    @classmethod
    def local(cls) -> Kube:
        return cls([*CLUSTER, "exec", "--"])

    def run(self, *command: str, stdin: str | None = None, seconds: float = 180) -> str:
        """Its stdout. Raises DemoError with its stderr when it fails."""
        try:
            answer = subprocess.run(
                [*self.prefix, *command], input=stdin, capture_output=True, text=True, timeout=seconds, cwd=ROOT
            )
        except subprocess.TimeoutExpired:
            raise DemoError(f"`{' '.join(command)}` took longer than {seconds:.0f} s") from None
        if answer.returncode:
            raise DemoError(f"`{' '.join(command)}` failed: {answer.stderr.strip() or answer.stdout.strip()}")
        return answer.stdout

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = 60) -> str:
        return self.run("kubectl", *arguments, stdin=stdin, seconds=seconds)

    def apply(self, *objects: Manifest) -> str:
        """kubectl apply -f -."""
        return self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects, sort_keys=False))

    def get(self, *arguments: str) -> Manifest:
        found: Manifest = json.loads(self.kubectl("get", "-o", "json", *arguments))
        return found


class Deployed:
    """A SemiPDService in the cluster, its requests sent through its Service."""

    where = "through the Service"

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self._kube, self._namespace, self.name = kube, namespace, name
        self._url = ""
        self._sends = itertools.count(1)

    def use(self, url: str) -> None:
        """Reach it at `url` from now on."""
        self._url = url

    @property
    def url(self) -> str:
        """Its cluster IP, for a client inside the local cluster, unless `use` said another."""
        if not self._url:
            spec = self._kube.get("-n", self._namespace, "service", self.name)["spec"]
            self._url = f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"
        return self._url

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Path | None = None) -> list[Record]:
        """By a client that runs where the cluster IP can be reached; the monotonic clock is the same there."""
        number = next(self._sends)
        todo, done = OUT / "sent" / f"{number}-plan.jsonl", OUT / "sent" / f"{number}-records.jsonl"
        plans.write(plan, todo)
        done.unlink(missing_ok=True)
        seconds = max(request.at for request in plan) + 300
        command = [sys.executable, "-m", "e2e.traffic", "plan", self.url, str(todo), "--out", str(done)]
        command += ["--start", str(start)] if start is not None else []
        command += ["--stop", str(stop)] if stop is not None else []
        answer = subprocess.run(
            [*self._kube.prefix, *command], cwd=ROOT, capture_output=True, text=True, timeout=seconds
        )
        if not done.exists():
            raise DemoError(f"the client failed: {answer.stderr.strip()[-500:]}")
        return records.read(done)

    def read(self) -> Manifest:
        return self._kube.get("-n", self._namespace, "spd", self.name)

    def merge(self, spec: Manifest) -> None:
        patch = json.dumps({"spec": spec})
        self._kube.kubectl("-n", self._namespace, "patch", "spd", self.name, "--type", "merge", "-p", patch)

    def pods(self) -> list[Manifest]:
        found: list[Manifest] = self._kube.get("-n", self._namespace, "pods", "-l", f"semipd.io/service={self.name}")[
            "items"
        ]
        return found

    def images(self) -> set[str]:
        """Images of the engine containers of its pods."""
        containers = [container for pod in self.pods() for container in pod["spec"]["containers"]]
        return {container["image"] for container in containers if container["name"] == "engine"}

    def identity(self) -> tuple[str, ...]:
        """uid and restart count of each pod."""

        def one(pod: Manifest) -> str:
            restarts = sum(container["restartCount"] for container in pod["status"]["containerStatuses"])
            return f"{pod['metadata']['name']} {pod['metadata']['uid']} restarts {restarts}"

        return tuple(sorted(one(pod) for pod in self.pods()))


def claim(namespace: str, model_root: Path | None) -> list[Manifest]:
    """The claim `models`: a static volume over a folder of the node, or (None) one of the default storage class."""
    size = {"storage": "2Gi"}
    volume_claim: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": size}},
    }
    if model_root is None:
        return [volume_claim]
    name = f"{namespace}-models"
    volume_claim["spec"] |= {"storageClassName": "", "volumeName": name, "accessModes": ["ReadOnlyMany"]}
    volume: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": str(model_root), "type": "Directory"},
            "claimRef": {"namespace": namespace, "name": "models"},
        },
    }
    return [volume, volume_claim]
