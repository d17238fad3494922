"""Fixtures of the tests that serve models: the operator by Helm, the models' claim, a namespace for each test file.

conftest.py imports them. When a test fails, what the cluster says about its namespaces is attached to the report.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from e2e.lib import models
from e2e.lib.cluster import Cluster
from e2e.lib.helm import OPERATOR, SYSTEM, Operator
from e2e.lib.kube import Object
from e2e.lib.service import Service, models_claim
from e2e.lib.waiting import wait_until


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Operator]:
    release = Operator(cluster)
    release.uninstall()
    release.install()
    yield release
    release.uninstall()


@pytest.fixture(scope="session")
def model_paths() -> dict[str, Path]:
    """SmolLM2 and a random model of each architecture, by name; made on first use."""
    made = {f"tiny-{arch}": models.random_model(arch) for arch in models.ARCHITECTURES}
    return made | {"smollm2": models.smollm2()}


@pytest.fixture(scope="module")
def space(cluster: Cluster, operator: Operator, model_paths: dict[str, Path]) -> Iterator[str]:
    """A namespace of the test file's own with the claim `models`; all of it is deleted at the end."""
    name = f"spd-{uuid4().hex[:8]}"
    create_space(cluster, name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "persistentvolume", f"{name}-models", "--wait=false")


def create_space(cluster: Cluster, name: str) -> None:
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "--namespace", name, "--timeout=120s")
    cluster.apply(*models_claim(name, models.cache_root() / "models"))


Serve = Callable[[str, Object], Service]


@pytest.fixture
def serve(cluster: Cluster, space: str) -> Iterator[Serve]:
    """Applies a SemiPDService that is deleted with its pods when the test ends."""
    made: list[Service] = []

    def start(name: str, spec: Object) -> Service:
        service = Service(cluster, space, name)
        made.append(service)
        return service.apply(spec)

    yield start
    for service in made:
        cluster.exec("kubectl", "--namespace", space, "delete", "spd", service.name, "--ignore-not-found")
        wait_until(lambda service=service: not service.pods(), 60, lambda: "pods outlive their service")  # type: ignore[misc]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    arguments = getattr(item, "funcargs", {})
    cluster, namespace = arguments.get("cluster"), arguments.get("space")
    if report.failed and isinstance(cluster, Cluster) and namespace:
        report.sections.append(("cluster", diagnose(cluster, namespace)))
    return report


def diagnose(cluster: Cluster, namespace: str) -> str:
    """What a person would look at first."""
    at = ("--namespace", namespace)
    commands = [
        ("kubectl", *at, "get", "spd,deployments,pods", "-o", "wide"),
        ("kubectl", *at, "describe", "spd"),
        ("kubectl", *at, "get", "events", "--sort-by=.lastTimestamp"),
        ("kubectl", *at, "logs", "-l", "app.kubernetes.io/component=engine", "--tail=60", "--prefix"),
        ("kubectl", "--namespace", SYSTEM, "logs", OPERATOR, "--tail=60"),
    ]
    parts = []
    for command in commands:
        answer = cluster.exec(*command, check=False)
        parts.append(f"$ {' '.join(command)}\n{answer.stdout}{answer.stderr}")
    return "\n".join(parts)
