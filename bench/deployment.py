"""A SemiPDService on the local cluster for as long as a benchmark runs: operator, namespace and models included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from e2e.lib.cluster import ENGINE_IMAGE, OPERATOR_IMAGE, Cluster
from e2e.lib.fixtures import create_space
from e2e.lib.helm import Operator
from e2e.lib.kube import Object
from e2e.lib.service import Service
from localkube import lifecycle
from localkube.state import State


@contextmanager
def deployed(name: str, spec: Object) -> Iterator[Service]:
    """The service, ready. Brings the cluster up if it is not, and installs the operator afresh; both stay."""
    state = State.default()
    lifecycle.up(state)
    cluster = Cluster(state)
    cluster.load(OPERATOR_IMAGE, ENGINE_IMAGE)
    operator = Operator(cluster)
    operator.uninstall()
    operator.install()
    space = f"bench-{uuid4().hex[:8]}"
    create_space(cluster, space)
    try:
        yield Service(cluster, space, name).apply(spec).wait_ready()
    finally:
        cluster.exec("kubectl", "delete", "namespace", space, "--timeout=90s", check=False)
        cluster.exec("kubectl", "delete", "persistentvolume", f"{space}-models", check=False)
