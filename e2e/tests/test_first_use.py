"""The first use, as the README tells it: Helm install, `kubectl apply` of an example, a question, an answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml

from bench.traffic import ask, replay
from e2e.lib.cluster import Cluster
from e2e.lib.helm import SYSTEM, Operator
from e2e.lib.service import Service

pytestmark = pytest.mark.node

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cpu.yaml"
QUESTION = "What is the capital of France? Answer in one sentence."


def test_an_example_answers(cluster: Cluster, operator: Operator, space: str, model_paths: dict[str, Path]) -> None:
    manifest = yaml.safe_load(EXAMPLE.read_text())
    # The example names a folder of the reader's claim; here the folder's name carries a digest.
    manifest["spec"]["model"]["uri"] = f"pvc://models/{model_paths['smollm2'].name}"
    cluster.kubectl("--namespace", space, "apply", "-f", "-", stdin=json.dumps(manifest))
    name = manifest["metadata"]["name"]
    service = Service(cluster, space, name).wait_ready(180)
    row = service.row()
    assert list(row) == ["NAME", "READY", "REASON", "REPLICAS", "SPLIT", "ENFORCED", "TTFT", "TPOT", "SLO", "AGE"]
    shown = {column: row[column] for column in ("READY", "REASON", "REPLICAS", "SPLIT", "ENFORCED")}
    assert shown == {"READY": "True", "REASON": "Ready", "REPLICAS": "1", "SPLIT": "50/50", "ENFORCED": "paced"}
    url = service.url()
    with cluster.network():
        [record] = asyncio.run(replay([ask(QUESTION)], url))
    assert record.ok, record.error
    assert "Paris" in record.text
    described = cluster.kubectl("--namespace", space, "describe", "spd", name)
    assert "ModelLoaded" in described
    service.delete()


def test_helm_test_passes(cluster: Cluster, operator: Operator) -> None:
    said = cluster.exec("helm", "test", "semipd", "--namespace", SYSTEM, "--timeout", "120s").stdout
    assert "Phase:          Succeeded" in said
