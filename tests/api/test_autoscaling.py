"""Autoscaling against a real API server: the external metrics through its aggregation layer, and who is refused there;
the HPA and the ScaledObject that follow the specification, and the condition that follows them.

The operator runs with the chart's rights only. There is no controller manager: what the HPA's controller would say is
written by hand. kube-apiserver finds the operator's port by a Service of type ExternalName.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import OPERATOR_NAMESPACE, free_port
from tests.api.harness import KEY, Agent, Operator, chart_rights, condition, make_pod, ready, service, until

from semipd_agent.contract import service_token

pytestmark = pytest.mark.api

API_SERVICE = "v1beta1.external.metrics.k8s.io"
ROOT_PATH = "/apis/external.metrics.k8s.io/v1beta1"
NAME = "semipd-operator"
SLO = {"ttftMilliseconds": 500}


@dataclass(frozen=True)
class Scaled:
    crd: Any
    operator: Operator
    agent_port: int
    port: int
    """Of the metrics API."""


def scaled_objects() -> dict[str, Any]:
    """KEDA's definition, without its schema."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    names = {
        "kind": "ScaledObject",
        "plural": "scaledobjects",
        "singular": "scaledobject",
        "listKind": "ScaledObjectList",
    }
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "scaledobjects.keda.sh"},
        "spec": {"group": "keda.sh", "scope": "Namespaced", "names": names, "versions": [version]},
    }


@pytest.fixture(scope="module")
def scaled(crd: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    port, agent_port = free_port(), free_port()
    crd.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}})
    here = {"type": "ExternalName", "externalName": "localhost"}
    metadata = {"name": NAME, "namespace": OPERATOR_NAMESPACE}
    crd.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": here})
    for obj in chart_rights(crd, "metrics-api"):
        if obj["kind"] == "APIService":
            obj["spec"]["service"]["port"] = port
        crd.apply(obj)
    flags = (f"--metrics-api-service={OPERATOR_NAMESPACE}/{NAME}", f"--metrics-api-secret={NAME}-metrics-api")
    folder = tmp_path_factory.mktemp("scaled")
    ports = (free_port(), free_port())
    running = Operator(crd, folder, agent_port, ports, *flags, f"--metrics-api-port={port}")
    try:
        assert until(running.ready, 60), running.log.read_text()[-3000:]
        yield Scaled(crd, running, agent_port, port)
        print(running.log.read_text()[-6000:])
    finally:
        crd.kubectl("delete", "apiservice", API_SERVICE)
        if running.process.poll() is None:
            running.stop()


@pytest.fixture
def agent(scaled: Scaled, namespace: str) -> Iterator[Agent]:
    """The agent of the one ready pod of the autoscaled service `demo`."""
    crd = scaled.crd
    crd.apply(service("demo", namespace, slo=SLO, autoscaling={"maxReplicas": 3}))
    assert until(lambda: crd.get("deployment", "demo", namespace))
    uid = crd.get("spd", "demo", namespace)["metadata"]["uid"]
    pod = make_pod(crd, namespace, "demo", "demo-1", ready("127.0.0.3"))
    speaking = Agent("127.0.0.3", scaled.agent_port, pod, service_token(KEY.encode(), namespace, "demo", uid))
    yield speaking
    speaking.close()
    crd.kubectl("delete", "spd", "demo", "-n", namespace)


def available(crd: Any) -> bool:
    conditions = (crd.get("apiservice", API_SERVICE, "default").get("status") or {}).get("conditions", [])
    return any(entry["type"] == "Available" and entry["status"] == "True" for entry in conditions)


def metric(namespace: str, selector: str = "semipd_service%3Ddemo") -> str:
    return f"{ROOT_PATH}/namespaces/{namespace}/semipd_capacity_ratio?labelSelector={selector}"


def freshness(crd: Any) -> str:
    """What kube-apiserver's aggregated discovery says of our group."""
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    headers = {"Authorization": "Bearer admin-token", "Accept": accept}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(f"{crd.url}/apis", headers=headers)
    with urllib.request.urlopen(request, context=context, timeout=10) as answer:
        groups = {item["metadata"]["name"]: item["versions"] for item in json.load(answer)["items"]}
    return str(groups["external.metrics.k8s.io"][0]["freshness"])


def test_the_metric_passes_the_aggregation_layer(scaled: Scaled, agent: Agent, namespace: str) -> None:
    crd = scaled.crd
    assert until(lambda: available(crd), 40), crd.get("apiservice", API_SERVICE, "default")["status"]
    listed = json.loads(crd.kubectl("get", "--raw", ROOT_PATH).stdout)
    assert [each["name"] for each in listed["resources"]] == ["semipd_capacity_ratio"]
    groups = [group["name"] for group in json.loads(crd.kubectl("get", "--raw", "/apis").stdout)["groups"]]
    assert "external.metrics.k8s.io" in groups
    # Else no namespace could be deleted: the controller for that wants to know every API.
    assert until(lambda: freshness(crd) == "Current", 40), freshness(crd)

    def value(path: str = metric(namespace)) -> Any:
        return [item["value"] for item in json.loads(crd.kubectl("get", "--raw", path).stdout)["items"]]

    assert value() == [], "the agent does not tell: no value, and no zero"
    agent.capacity_ratio = 1.25
    assert until(lambda: value() == ["1250m"])
    agent.capacity_ratio = 0.0
    assert until(lambda: value() == ["0"] or value() == ["0m"])
    assert value(metric(namespace, "")) and not value(metric(namespace, "semipd_service%3Dother"))
    assert not value(metric("default"))
    refused = crd.kubectl("get", "--raw", metric(namespace, "app%3Ddemo"), ok=False)
    assert refused.returncode != 0 and "semipd_service=NAME" in refused.stderr


def test_a_user_needs_the_right_to_read_the_metric(scaled: Scaled, agent: Agent, namespace: str) -> None:
    crd = scaled.crd
    assert until(lambda: available(crd), 40)
    path = metric(namespace)
    denied = crd.kubectl("get", "--raw", path, "--as=eve", ok=False)
    assert denied.returncode != 0 and "orbidden" in denied.stderr
    rights = ("--verb=list", "--resource=semipd_capacity_ratio.external.metrics.k8s.io", "-n", namespace)
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "reader", "namespace": namespace},
        "rules": [{"apiGroups": ["external.metrics.k8s.io"], "resources": ["*"], "verbs": ["list"]}],
    }
    crd.apply(role)
    crd.kubectl("create", "rolebinding", "reader", "--role=reader", "--user=alice", "-n", namespace)
    assert rights and until(lambda: crd.kubectl("get", "--raw", path, "--as=alice", ok=False).returncode == 0)
    # The HPA's controller has the right from Kubernetes itself.
    account = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
    assert crd.kubectl("get", "--raw", path, f"--as={account}").returncode == 0


def ask_directly(scaled: Scaled, namespace: str, certificate: str = "", user: str = "") -> int:
    """HTTP status of a request past kube-apiserver, with a certificate of the front proxy's CA; 0: no TLS at all."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        folder: Path = scaled.crd.folder / "pki"
        context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    request = urllib.request.Request(f"https://localhost:{scaled.port}{metric(namespace)}")
    request.add_header("Authorization", "Bearer admin-token")
    if user:
        request.add_header("X-Remote-User", user)
        request.add_header("X-Remote-Group", "system:authenticated")
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError):
        return 0


def test_a_direct_call_is_refused(scaled: Scaled, agent: Agent, namespace: str) -> None:
    assert until(lambda: available(scaled.crd), 40)
    assert ask_directly(scaled, namespace) == 0, "without a certificate there is no connection"
    assert ask_directly(scaled, namespace, user="admin") == 0, "and headers alone prove nothing"
    assert ask_directly(scaled, namespace, "stranger", "admin") == 401, (
        "the CA's other certificates are not the proxy's"
    )
    assert ask_directly(scaled, namespace, "front-proxy") == 401, "the proxy must name a user"
    assert ask_directly(scaled, namespace, "front-proxy", "eve") == 403
    assert ask_directly(scaled, namespace, "front-proxy", "admin") == 403, "a name is not its groups"


def test_the_secret_is_the_only_one_that_the_operator_may_touch(scaled: Scaled) -> None:
    crd = scaled.crd
    secret = until(lambda: (crd.get("secret", f"{NAME}-metrics-api", OPERATOR_NAMESPACE) or {}).get("data"))
    assert set(secret) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    account = f"--as=system:serviceaccount:{OPERATOR_NAMESPACE}:{NAME}"

    def may(*what: str) -> bool:
        return crd.kubectl("auth", "can-i", *what, account, ok=False).stdout.strip() == "yes"

    assert may("patch", f"secret/{NAME}-metrics-api", "-n", OPERATOR_NAMESPACE)
    assert not may("get", f"secret/{NAME}-key", "-n", OPERATOR_NAMESPACE)
    assert not may("list", "secrets", "-n", OPERATOR_NAMESPACE)
    assert not may("create", "apiservices") and not may("patch", "apiservice/v1beta1.metrics.k8s.io")


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

    hpa = until(lambda: crd.get("hpa", "demo", namespace))
    assert hpa["metadata"]["ownerReferences"][0]["kind"] == "SemiPDService"
    assert hpa["spec"]["scaleTargetRef"]["kind"] == "SemiPDService" and hpa["spec"]["maxReplicas"] == 3
    template = crd.get("deployment", "demo", namespace)["spec"]["template"]
    assert until(lambda: available(crd), 40)
    assert until(lambda: scaling() == ("Unknown", "AutoscalerPending")), scaling()
    says("True", "ValidMetricFound")
    assert until(lambda: scaling() == ("True", "ScalingActive"), 8), scaling()
    says("False", "FailedGetExternalMetric")
    assert until(lambda: scaling() == ("False", "MetricsMissing"), 8), scaling()
    assert until(lambda: condition(crd.get("spd", "demo", namespace), "Ready")["status"] == "True"), (
        "nothing else breaks"
    )

    scale = f"/apis/semipd.io/v1alpha1/namespaces/{namespace}/semipdservices/demo/scale"
    crd.request("PATCH", scale, {"spec": {"replicas": 2}}, "application/merge-patch+json")  # as the HPA does
    assert until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 2)
    crd.kubectl(
        "patch", "spd", "demo", "-n", namespace, "--type=merge", "-p", '{"spec":{"autoscaling":{"maxReplicas":5}}}'
    )
    assert until(lambda: crd.get("hpa", "demo", namespace)["spec"]["maxReplicas"] == 5)
    assert crd.get("spd", "demo", namespace)["spec"]["replicas"] == 2, "the operator writes no replicas"
    manager = [
        entry["manager"]
        for entry in crd.request("GET", scale.removesuffix("/scale"))["metadata"]["managedFields"]
        if "f:replicas" in json.dumps(entry["fieldsV1"].get("f:spec", {}))
    ]
    assert NAME not in manager
    crd.kubectl("delete", "hpa", "demo", "-n", namespace)
    assert until(lambda: crd.get("hpa", "demo", namespace)), "drift is mended"
    crd.kubectl("patch", "spd", "demo", "-n", namespace, "--type=merge", "-p", '{"spec":{"autoscaling":null}}')
    assert until(lambda: crd.get("hpa", "demo", namespace) is None)
    assert until(lambda: scaling() == (None, None)), "no autoscaling, no condition"
    assert crd.get("deployment", "demo", namespace)["spec"]["template"] == template, "nothing rolled"


def test_keda_is_looked_for_and_missed(scaled: Scaled, namespace: str) -> None:
    crd = scaled.crd
    keda = {"maxReplicas": 4, "keda": {"serverAddress": "http://prometheus.monitoring:9090"}}
    crd.apply(service("keda", namespace, slo=SLO, autoscaling=keda))

    def scaling() -> str | None:
        return condition(crd.get("spd", "keda", namespace), "ScalingReady").get("reason")

    assert until(lambda: scaling() == "KEDANotInstalled"), scaling()
    live = crd.get("spd", "keda", namespace)
    assert condition(live, "SpecAccepted")["status"] == "True" and crd.get("deployment", "keda", namespace)
    crd.apply(scaled_objects())
    crd.kubectl("wait", "--for=condition=Established", "crd/scaledobjects.keda.sh", "--timeout=30s")
    made = until(lambda: crd.get("scaledobject", "keda", namespace), 30)
    assert made["spec"]["scaleTargetRef"]["kind"] == "SemiPDService"
    assert until(lambda: scaling() == "AutoscalerPending"), scaling()
    status = {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "ScaledObjectReady"}]}}
    path = f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects/keda/status"
    crd.request("PATCH", path, status, "application/merge-patch+json")
    assert until(lambda: scaling() == "ScalingActive"), scaling()
    change = {"spec": {"autoscaling": {"keda": None, "hpa": {}}}}
    crd.kubectl("patch", "spd", "keda", "-n", namespace, "--type=merge", "-p", json.dumps(change))
    assert until(lambda: crd.get("hpa", "keda", namespace))
    assert until(lambda: crd.get("scaledobject", "keda", namespace) is None), "one autoscaler takes the other's place"
    crd.kubectl("delete", "spd", "keda", "-n", namespace)


def test_without_the_api_the_condition_says_so(scaled: Scaled, agent: Agent, namespace: str) -> None:
    crd = scaled.crd
    assert until(lambda: available(crd), 40)
    registered = crd.get("apiservice", API_SERVICE, "default")
    crd.kubectl("delete", "apiservice", API_SERVICE)

    def scaling() -> str | None:
        return condition(crd.get("spd", "demo", namespace), "ScalingReady").get("reason")

    assert until(lambda: scaling() == "MetricsAPIUnavailable"), scaling()
    fresh = {"name": registered["metadata"]["name"], "labels": registered["metadata"].get("labels", {})}
    spec = {key: value for key, value in registered["spec"].items() if key != "caBundle"}
    crd.apply({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": fresh, "spec": spec})
    # A whole look of the operator's may pass until it sees it.
    assert until(lambda: available(crd), 90), "the CA is told again"
    assert until(lambda: scaling() == "AutoscalerPending"), scaling()
