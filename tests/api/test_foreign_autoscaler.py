"""An autoscaler of someone else, which bears none of our labels, is seen although no resync comes round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import Operator, chart_rights, condition, row, service

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api


def test_an_autoscaler_of_the_deployment_is_seen_without_a_resync(
    crd: Any, namespace: str, agent_port: int, tmp_path: Path
) -> None:
    for obj in chart_rights():
        crd.apply(obj)
    with Operator(crd, tmp_path, agent_port, "--resync-seconds=3600"):
        crd.apply(service("fought", namespace, replicas=0))
        wait_until(lambda: row(crd, namespace, "fought")[1] == "True")
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "fought"}
        hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
        spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4}
        crd.apply({**hpa, "metadata": {"name": "theirs", "namespace": namespace}, "spec": spec})

        def said() -> Any:
            return condition(crd.get("spd", "fought", namespace), "ScalingReady").get("reason")

        wait_until(lambda: said() == "ConflictingAutoscaler")
        crd.kubectl("delete", "hpa", "theirs", "-n", namespace)
        wait_until(lambda: said() is None)
