"""The CRD is deleted under a running operator, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import ROOT, Operator, chart_rights, condition, service

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api


def test_a_crd_that_is_deleted_and_comes_back_is_watched_again(
    crd: Any, namespace: str, agent_port: int, tmp_path: Path
) -> None:
    for obj in chart_rights():
        crd.apply(obj)
    # No resync within the test: what is heard is heard by the watches.
    with Operator(crd, tmp_path, agent_port, "--resync-seconds=3600") as running:
        crd.apply(service("before", namespace))
        wait_until(lambda: crd.get("deployment", "before", namespace))
        try:
            crd.kubectl("delete", "crd", "semipdservices.semipd.io")
            wait_until(lambda: not running.ready(), describe="an operator without services to watch is not ready")
        finally:
            crd.kubectl("apply", "-f", str(ROOT / "crds"))
            wait_until(lambda: crd.kubectl("get", "spd", "-A", ok=False).returncode == 0)
        wait_until(running.ready, describe=running.log.read_text)
        crd.apply(service("after", namespace))
        wait_until(
            lambda: condition(crd.get("spd", "after", namespace), "SpecAccepted"), describe=running.log.read_text
        )
        crd.kubectl("patch", "spd", "after", "-n", namespace, "--type=merge", '-p={"spec":{"replicas":2}}')
        wait_until(lambda: crd.get("deployment", "after", namespace)["spec"]["replicas"] == 2)
        assert running.process.poll() is None
        crd.kubectl("delete", "deployment", "after", "-n", namespace)
        wait_until(lambda: crd.get("deployment", "after", namespace), describe="the children are watched, too")
        assert running.stop() == 0
    said = running.log.read_text()
    assert "its CRD was deleted" in said and "Traceback" not in said and " ERROR " not in said, said
