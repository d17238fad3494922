"""Fixtures of the node tier: one real cluster for the session, brought up if there is none.

A missing prerequisite fails the test in one line that names the remedy; it never skips.
"""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from e2e.lib.cluster import CLUSTER, ENGINE_IMAGE, OPERATOR_IMAGE, Cluster
from e2e.lib.fixtures import model_paths, operator, pytest_runtest_makereport, serve, space
from localkube import lifecycle
from localkube.errors import ClusterError
from localkube.state import State

__all__ = [
    "CLUSTER",
    "ENGINE_IMAGE",
    "OPERATOR_IMAGE",
    "Cluster",
    "bring_up",
    "model_paths",
    "operator",
    "pytest_runtest_makereport",
    "serve",
    "space",
]


def bring_up(state: State) -> tuple[Cluster, bool]:
    """The cluster and whether it was started now."""
    try:
        fresh = lifecycle.up(state)
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)
    return Cluster(state), fresh


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of `hack/cluster/cluster up`, reused if it is up; one that was started here ends with the session."""
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
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "--namespace", name, "--timeout=120s")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
