"""A live cluster as tests use it: kubectl and helm inside its namespaces, images, its network. It starts nothing."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from localkube import namespaces
from localkube.imageload import load
from localkube.state import State

CLUSTER = Path(__file__).parent / "cluster" / "cluster"
OPERATOR_IMAGE = "localhost/semipd/operator:dev"
ENGINE_IMAGE = "localhost/semipd/engine:dev"


class Cluster:
    """A live cluster as tests use it. Failing commands raise `AssertionError` with what they printed."""

    def __init__(self, state: State) -> None:
        self.state = state

    def exec(
        self, *argv: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside the cluster's namespaces, kubectl and helm on its PATH."""
        command = [sys.executable, str(CLUSTER), "exec", "--", *argv]
        env = os.environ | {"SEMIPD_RUN": str(self.state.root)}
        answer = subprocess.run(command, input=stdin or "", env=env, capture_output=True, text=True, timeout=timeout_s)
        assert not check or answer.returncode == 0, f"{' '.join(argv)}:\n{answer.stdout}\n{answer.stderr}"
        return answer

    def kubectl(self, *argv: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """What kubectl printed."""
        return self.exec("kubectl", *argv, stdin=stdin, timeout_s=timeout_s).stdout

    def apply(self, *objects: dict[str, Any], namespace: str) -> None:
        self.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, what: str, name: str, namespace: str) -> dict[str, Any]:
        return dict(yaml.safe_load(self.kubectl("get", what, name, "--namespace", namespace, "-o", "json")))

    def load(self, *images: str) -> None:
        """Makes images of `images/build` known to the node."""
        for image in images:
            load(self.state, image)

    def network(self) -> AbstractContextManager[None]:
        """Inside the block this thread's sockets are in the cluster's network: pod and Service addresses answer."""
        return namespaces.network_of(self.state.require_supervisor())
