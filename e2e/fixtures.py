"""Fixtures of the tests that serve models: the operator by Helm, the models' claim, a namespace for each test file.

conftest.py imports them. When a test fails, what the cluster says about its namespaces is attached to the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from e2e import models
from e2e.live import ENGINE_IMAGE, OPERATOR_IMAGE, Cluster
from e2e.service import Object, Service, wait_until

CHART = Path(__file__).resolve().parents[1] / "charts" / "semipd-operator"
RELEASE, SYSTEM = "semipd", "semipd-system"
OPERATOR = "deployment/semipd-semipd-operator"


class Operator:
    """The Helm release. Install is idempotent: what an earlier session left is replaced."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def install(self, *options: str) -> str:
        """Returns what Helm printed."""
        return self._helm("install", "--create-namespace", *options)

    def upgrade(self, *options: str) -> str:
        """With the chart's own values but for `options`."""
        return self._helm("upgrade", "--reset-values", *options)

    def _helm(self, verb: str, *options: str) -> str:
        # Images are of this tree, so the chart's tags are overridden.
        for name, image in {"image": OPERATOR_IMAGE, "engine.image": ENGINE_IMAGE}.items():
            repository, _, tag = image.rpartition(":")
            options += ("--set", f"{name}.repository={repository}", "--set", f"{name}.tag={tag}")
        command = ("helm", verb, RELEASE, str(CHART), "--namespace", SYSTEM)
        return self.cluster.exec(*command, *options, "--wait", "--timeout", "90s").stdout

    def uninstall(self) -> None:
        command = ("helm", "uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found")
        self.cluster.exec(*command, "--wait", "--timeout", "90s")

    def scale(self, replicas: int) -> None:
        self.cluster.kubectl("--namespace", SYSTEM, "scale", OPERATOR, f"--replicas={replicas}")
        pods = ("--namespace", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "json")

        def there() -> bool:
            found = json.loads(self.cluster.kubectl(*pods))["items"]
            ready = [c for pod in found for c in pod["status"].get("conditions", []) if c["type"] == "Ready"]
            return len(found) == replicas and all(c["status"] == "True" for c in ready)

        wait_until(there, 60, lambda: f"operator at {replicas} replicas")

    def log(self) -> str:
        return self.cluster.exec("kubectl", "--namespace", SYSTEM, "logs", OPERATOR, check=False).stdout


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


def models_volume(namespace: str) -> tuple[Object, Object]:
    """A PersistentVolume of the models' cache on the node, and the claim `models` that is bound to it."""
    name = f"models-{namespace}"
    volume: Object = {
        "capacity": {"storage": "10Gi"},
        "accessModes": ["ReadOnlyMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "claimRef": {"namespace": namespace, "name": "models"},
        "hostPath": {"path": str(models.cache_root() / "models"), "type": "Directory"},
    }
    claim: Object = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "volumeName": name,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return (
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": claim},
    )


@pytest.fixture(scope="module")
def space(cluster: Cluster, operator: Operator, model_paths: dict[str, Path]) -> Iterator[str]:
    """A namespace of the test file's own with the claim `models`; all of it is deleted at the end."""
    name = f"spd-{uuid4().hex[:8]}"
    create_space(cluster, name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "persistentvolume", f"models-{name}", "--wait=false")


def create_space(cluster: Cluster, name: str) -> None:
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "--namespace", name, "--timeout=30s")
    cluster.apply(*models_volume(name), namespace=name)


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
