"""Fixtures of the node tier: one real cluster for the session, brought up if there is none.

A missing prerequisite fails the test in one line that names the remedy; it never skips.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from localkube import lifecycle, namespaces
from localkube.errors import ClusterError
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


def bring_up(state: State) -> tuple[Cluster, bool]:
    """The cluster and whether it was started now."""
    try:
        fresh = lifecycle.up(state)
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)
    return Cluster(state), fresh


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of `e2e/cluster/cluster up`, reused if it is up; one that was started here ends with the session."""
    state = State.default()
    live, fresh = bring_up(state)
    try:
        live.load(OPERATOR_IMAGE, ENGINE_IMAGE)
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)
    yield live
    if fresh:
        lifecycle.down(state)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A Kubernetes namespace of the test's own, deleted with all that is in it."""
    name = f"test-{uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "--namespace", name, "--timeout=30s")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
