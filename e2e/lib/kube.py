"""kubectl, helm and the like against one cluster, for tests, benchmarks and the demo. Knows nothing of the project.

The local cluster lives in namespaces of its own: each command runs inside, through `hack/cluster/cluster exec`. An
existing cluster needs no prefix.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = [sys.executable, str(ROOT / "hack" / "cluster" / "cluster")]

Object = dict[str, Any]


class KubeError(Exception):
    """A command failed or took too long; the text holds it and what it printed."""


class Kube:
    """Commands against one cluster; `prefix` is what makes them run where it can be reached."""

    def __init__(self, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.prefix, self._env = list(prefix), dict(env or {})

    @classmethod
    def local(cls, env: Mapping[str, str] | None = None) -> Kube:
        return cls([*CLUSTER, "exec", "--"], env)

    def exec(
        self, *command: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Raises `KubeError`."""
        full, env = [*self.prefix, *command], os.environ | self._env
        try:
            answer = subprocess.run(
                full, input=stdin or "", env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise KubeError(f"`{' '.join(command)}` took longer than {timeout_s:.0f} s") from None
        if check and answer.returncode:
            raise KubeError(f"`{' '.join(command)}` failed:\n{answer.stdout}{answer.stderr}".rstrip())
        return answer

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command that goes on beside; what it prints is in its `stdout`."""
        full, env = [*self.prefix, *command], os.environ | self._env
        return subprocess.Popen(full, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """What kubectl printed."""
        return self.exec("kubectl", *arguments, stdin=stdin, timeout_s=timeout_s).stdout

    def apply(self, *objects: Object, namespace: str = "") -> str:
        """kubectl apply -f -."""
        at = ("--namespace", namespace) if namespace else ()
        return self.kubectl("apply", *at, "-f", "-", stdin=yaml.safe_dump_all(objects, sort_keys=False))

    def get(self, what: str, name: str, namespace: str) -> Object:
        found: Object = json.loads(self.kubectl("get", what, name, "--namespace", namespace, "-o", "json"))
        return found

    def network(self) -> AbstractContextManager[None]:
        """Inside the block this thread reaches what it can of the cluster's network."""
        return nullcontext()

    def reaches(self, host: str, port: int) -> bool:
        """Whether a connection comes about; True where nobody can tell from here."""
        return True
