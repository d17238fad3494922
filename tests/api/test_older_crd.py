"""The operator on the CRD of an older release: what that has no place for is left out, all else stays current."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.api.harness import ROOT, Operator, condition, row, service, serving

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api
NAME = "semipdservices.semipd.io"


def older() -> dict[str, Any]:
    """The CRD without some fields of each depth, two of them in one object: the API server names one at a time."""
    crd: dict[str, Any] = yaml.safe_load((ROOT / f"crds/{NAME}.yaml").read_text())
    version = crd["spec"]["versions"][0]
    version["additionalPrinterColumns"] = []
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    parts = status["properties"]
    _drop(status, "url", "templateHash")
    _drop(parts["slo"], "percentile", "windowSeconds")
    _drop(parts["partition"]["properties"]["pods"]["items"], "state", "message")
    return crd


def _drop(schema: dict[str, Any], *names: str) -> None:
    for name in names:
        del schema["properties"][name]
    schema["required"] = [name for name in schema.get("required", []) if name not in names]


@pytest.fixture
def ours(crd: Any) -> Iterator[None]:
    yield
    crd.kubectl("apply", "-f", str(ROOT / "crds"))


def test_a_status_stays_current_and_is_whole_again_with_the_newer_crd(
    operator: Operator, ours: None, crd: Any, namespace: str, agent_port: int
) -> None:
    with serving(crd, namespace, "skew", "127.0.0.9", agent_port, slo={"ttftMilliseconds": 500}):
        wait_until(lambda: row(crd, namespace, "skew")[1:3] == ["True", "Ready"])

        def status() -> Any:
            found = crd.get("spd", "skew", namespace)
            return {**found["status"], "generation": found["metadata"]["generation"]}

        def current() -> bool:
            return bool(status().get("observedGeneration") == status()["generation"])

        assert status()["url"] and status()["slo"]["percentile"] == 90
        crd.apply(older())
        # A schema that was replaced is in force a moment later.
        wait_until(lambda: "url" not in status(), describe=status)
        for replicas, target in ((2, 450), (3, 400)):
            patch = {"spec": {"replicas": replicas, "slo": {"ttftMilliseconds": target}}}
            crd.kubectl("patch", "spd", "skew", "-n", namespace, "--type=merge", "-p", json.dumps(patch))
            wait_until(current, describe=status)
            assert status()["slo"]["ttft"]["targetMilliseconds"] == target
            assert f"1 of {replicas} pods" in condition(crd.get("spd", "skew", namespace), "Ready")["message"]
        crd.kubectl("patch", "spd", "skew", "-n", namespace, "--type=merge", '-p={"spec":{"replicas":1}}')
        wait_until(lambda: condition(crd.get("spd", "skew", namespace), "Ready")["status"] == "True", describe=status)

        def told(reason: str) -> list[str]:
            listed = crd.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
            return [one["message"] for one in listed if one["reason"] == reason]

        assert len(told("CRDOutdated")) == 1 and not told("StatusRefused")
        assert (
            "status.slo.windowSeconds" in told("CRDOutdated")[0] and "Remedy: bring the CRD" in told("CRDOutdated")[0]
        )
        crd.kubectl("apply", "-f", str(ROOT / "crds"))
        wait_until(lambda: status().get("url") and status()["slo"].get("percentile") == 90, 120, describe=status)


def test_what_a_service_says_for_the_first_time_is_said_under_an_older_crd_too(
    operator: Operator, ours: None, crd: Any, namespace: str
) -> None:
    crd.apply(older())
    crd.apply(service("late", namespace, slo={"ttftMilliseconds": 500}))
    wait_until(lambda: condition(crd.get("spd", "late", namespace), "SpecAccepted"))


def laxer() -> dict[str, Any]:
    """The CRD of a release that took any image and any name of a Secret."""
    crd: dict[str, Any] = yaml.safe_load((ROOT / f"crds/{NAME}.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del spec["engine"]["properties"]["image"]["x-kubernetes-validations"]
    for field in spec["service"]["properties"]["apiKeySecretRef"]["properties"].values():
        del field["x-kubernetes-validations"]
    return crd


def test_what_an_older_crd_took_and_a_pod_template_made_work_serves_on_under_a_stricter_one(
    operator: Operator, ours: None, crd: Any, namespace: str, agent_port: int
) -> None:
    crd.apply(laxer())
    keys = {"name": "api-keys", "secret": {"secretName": "keys"}}
    template = {"spec": {"containers": [{"name": "engine", "image": "engine:test"}], "volumes": [keys]}}
    spec = {
        "engine": {"image": "to be replaced"},
        "service": {"apiKeySecretRef": {"name": "Keys"}},
        "podTemplate": template,
    }

    def accepted() -> bool:
        return bool(crd.apply(service("lax", namespace, **spec), ok=False).returncode == 0)

    # A schema that was replaced is in force a moment later.
    wait_until(accepted)
    with serving(crd, namespace, "lax", "127.0.0.10", agent_port, **spec):
        wait_until(lambda: row(crd, namespace, "lax")[1:3] == ["True", "Ready"])
        crd.kubectl("apply", "-f", str(ROOT / "crds"))
        wait_until(lambda: crd.apply(service("new", namespace, **spec), "--dry-run=server", ok=False).returncode)

        def patch(more: dict[str, Any], ok: bool = True) -> Any:
            body = json.dumps({"spec": more})
            return crd.kubectl("patch", "spd", "lax", "-n", namespace, "--type=merge", "-p", body, ok=ok)

        patch({"slo": {"ttftMilliseconds": 450}})
        wait_until(lambda: "450ms" in " ".join(row(crd, namespace, "lax")))
        live = crd.get("spd", "lax", namespace)
        assert live["status"]["observedGeneration"] == live["metadata"]["generation"]
        assert condition(live, "SpecAccepted")["status"] == condition(live, "Ready")["status"] == "True"
        assert "registry.example/team" in patch({"engine": {"image": "another one"}}, ok=False).stderr
