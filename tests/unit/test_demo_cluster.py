"""What the demo asks of a cluster, in which order: its own, or an existing one. kubectl and helm are recorded."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.unit.operator_rendered import pod

from e2e.demo.acts import cluster
from e2e.demo.outcome import Outcome
from e2e.lib.kube import Kube

pytestmark = pytest.mark.unit

IMAGE = "registry.test/engine:dev"


class Recorder(Kube):
    """Answers as a cluster whose pod `model-upload` runs on node-3, and whose service is Ready with these engines."""

    def __init__(self, engines: Sequence[str]) -> None:
        super().__init__()
        self.commands: list[str] = []
        self.applied: list[dict[str, Any]] = []
        self._engines = engines

    def exec(
        self, *command: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, self.answer(" ".join(command), stdin), "")

    def answer(self, line: str, stdin: str | None) -> str:
        self.commands.append(line)
        if stdin is not None:
            self.applied += yaml.safe_load_all(stdin)
        if "-o json" in line and " pods " in line:
            containers = [{"name": "engine", "image": image} for image in self._engines]
            return json.dumps({"items": [{"metadata": {}, "spec": {"containers": [one]}} for one in containers]})
        if "-o json" in line and "pod model-upload" in line:
            return json.dumps({"spec": {"nodeName": "node-3"}})
        if "-o json" in line and " spd " in line:
            condition = {"type": "Ready", "status": "True", "observedGeneration": 1}
            return json.dumps({"metadata": {"generation": 1}, "status": {"conditions": [condition]}})
        return "1/1"

    def place(self, part: str) -> int:
        return next(n for n, line in enumerate(self.commands) if part in line)


@pytest.fixture
def outcome() -> Outcome:
    return Outcome(Console(file=io.StringIO()), mode="cluster")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    return tmp_path / "tiny"


def service(kube: Recorder) -> dict[str, Any]:
    return next(one for one in kube.applied if one["kind"] == "SemiPDService")


def test_pods_stay_where_an_existing_cluster_has_attached_the_claim(outcome: Outcome, model: Path) -> None:
    kube = Recorder([])
    cluster.deploy(outcome, kube, model, local=False, engine_image=IMAGE)
    affinity = pod(service(kube)["spec"])["spec"]["affinity"]
    (term,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-3"]}]}
    assert not any("delete spd" in line for line in kube.commands)


def test_an_earlier_service_leaves_an_existing_cluster_before_the_claim_is_written(
    outcome: Outcome, model: Path
) -> None:
    kube = Recorder([IMAGE])  # the same tag, and perhaps another image
    cluster.deploy(outcome, kube, model, local=False, engine_image=IMAGE)
    assert kube.place("delete spd") < kube.place("delete pod model-upload") < kube.place("wait pod/model-upload")
    assert kube.place("wait pod/model-upload") < kube.place(f"cp --no-preserve {model} model-upload:/models")


@pytest.mark.parametrize(("earlier", "deleted"), [(IMAGE, False), ("registry.test/engine:old", True)])
def test_in_the_local_cluster_only_another_image_is_replaced(
    outcome: Outcome, model: Path, earlier: str, deleted: bool
) -> None:
    kube = Recorder([earlier])
    cluster.deploy(outcome, kube, model, local=True, engine_image=IMAGE)
    assert any("delete spd" in line for line in kube.commands) is deleted
    assert "podTemplate" not in service(kube)["spec"]


@pytest.mark.parametrize("local", [True, False])
def test_only_tags_that_move_are_pulled_always(outcome: Outcome, local: bool) -> None:
    kube = Recorder([])
    cluster.install(outcome, kube, {"operator": "registry.test:5000/operator:dev", "engine": IMAGE}, local=local)
    helm = kube.commands[0]
    assert ("pullPolicy=Always" in helm) is not local
    assert "image.repository=registry.test:5000/operator --set-string image.tag=dev" in helm
