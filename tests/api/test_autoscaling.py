"""The HPA and the ScaledObject follow the specification, and the condition follows them, on a real API server."""

from __future__ import annotations

import json

import pytest
from tests.api.harness import Agent, condition, service
from tests.api.metrics_api import NAME, SLO, Scaled, available, scaled_objects

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api


def test_the_hpa_follows_the_specification_and_the_condition_follows_the_hpa(
    scaled: Scaled, agent: Agent, namespace: str
) -> None:
    crd = scaled.crd

    def scaling() -> tuple[str | None, str | None]:
        found = condition(crd.get("spd", "demo", namespace), "ScalingReady")
        return found.get("status"), found.get("reason")

    def says(status: str, reason: str) -> None:
        entry = {"type": "ScalingActive", "status": status, "reason": reason, "message": "as the controller says"}
        body = {"status": {"conditions": [entry], "currentMetrics": [], "desiredReplicas": 1}}
        path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers/demo/status"
        crd.request("PATCH", path, body, "application/merge-patch+json")

    hpa = wait_until(lambda: crd.get("hpa", "demo", namespace))
    assert hpa["metadata"]["ownerReferences"][0]["kind"] == "SemiPDService"
    assert hpa["spec"]["scaleTargetRef"]["kind"] == "SemiPDService" and hpa["spec"]["maxReplicas"] == 3
    template = crd.get("deployment", "demo", namespace)["spec"]["template"]
    wait_until(lambda: available(crd))
    wait_until(lambda: scaling() == ("Unknown", "AutoscalerPending"), describe=scaling)
    says("True", "ValidMetricFound")
    wait_until(lambda: scaling() == ("True", "ScalingActive"), describe=scaling)
    says("False", "FailedGetExternalMetric")
    wait_until(lambda: scaling() == ("False", "MetricsMissing"), describe=scaling)
    wait_until(
        lambda: condition(crd.get("spd", "demo", namespace), "Ready")["status"] == "True",
        describe="nothing else breaks",
    )

    scale = f"/apis/semipd.io/v1alpha1/namespaces/{namespace}/semipdservices/demo/scale"
    crd.request("PATCH", scale, {"spec": {"replicas": 2}}, "application/merge-patch+json")  # as the HPA does
    wait_until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 2)
    crd.kubectl(
        "patch", "spd", "demo", "-n", namespace, "--type=merge", "-p", '{"spec":{"autoscaling":{"maxReplicas":5}}}'
    )
    wait_until(lambda: crd.get("hpa", "demo", namespace)["spec"]["maxReplicas"] == 5)
    assert crd.get("spd", "demo", namespace)["spec"]["replicas"] == 2, "the operator writes no replicas"
    manager = [
        entry["manager"]
        for entry in crd.request("GET", scale.removesuffix("/scale"))["metadata"]["managedFields"]
        if "f:replicas" in json.dumps(entry["fieldsV1"].get("f:spec", {}))
    ]
    assert NAME not in manager
    crd.kubectl("delete", "hpa", "demo", "-n", namespace)
    wait_until(lambda: crd.get("hpa", "demo", namespace), describe="drift is mended")
    crd.kubectl("patch", "spd", "demo", "-n", namespace, "--type=merge", "-p", '{"spec":{"autoscaling":null}}')
    wait_until(lambda: crd.get("hpa", "demo", namespace) is None)
    wait_until(lambda: scaling() == (None, None), describe="no autoscaling, no condition")
    assert crd.get("deployment", "demo", namespace)["spec"]["template"] == template, "nothing rolled"


def test_keda_is_looked_for_and_missed(scaled: Scaled, namespace: str) -> None:
    crd = scaled.crd
    keda = {"maxReplicas": 4, "keda": {"serverAddress": "http://prometheus.monitoring:9090"}}
    crd.apply(service("keda", namespace, slo=SLO, autoscaling=keda))

    def scaling() -> str | None:
        return condition(crd.get("spd", "keda", namespace), "ScalingReady").get("reason")

    wait_until(lambda: scaling() == "KEDANotInstalled", describe=scaling)
    live = crd.get("spd", "keda", namespace)
    assert condition(live, "SpecAccepted")["status"] == "True" and crd.get("deployment", "keda", namespace)
    crd.define(scaled_objects())
    made = wait_until(lambda: crd.get("scaledobject", "keda", namespace))
    assert made["spec"]["scaleTargetRef"]["kind"] == "SemiPDService"
    wait_until(lambda: scaling() == "AutoscalerPending", describe=scaling)
    status = {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "ScaledObjectReady"}]}}
    path = f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects/keda/status"
    crd.request("PATCH", path, status, "application/merge-patch+json")
    wait_until(lambda: scaling() == "ScalingActive", describe=scaling)
    change = {"spec": {"autoscaling": {"keda": None, "hpa": {}}}}
    crd.kubectl("patch", "spd", "keda", "-n", namespace, "--type=merge", "-p", json.dumps(change))
    wait_until(lambda: crd.get("hpa", "keda", namespace))
    wait_until(
        lambda: crd.get("scaledobject", "keda", namespace) is None, describe="one autoscaler takes the other's place"
    )
    crd.kubectl("delete", "spd", "keda", "-n", namespace)
