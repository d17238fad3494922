"""What the tests of autoscaling are made of: an operator that serves the external metrics, and a service that scales.

There is no controller manager: what the HPA's controller would say is written by hand. kube-apiserver finds the
operator's port by a Service of type ExternalName.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.api.harness import KEY, OPERATOR_NAMESPACE, Agent, Operator, chart_rights, make_pod, ready, service

from e2e.lib.process import free_port
from e2e.lib.waiting import wait_until
from semipd_agent.contract import service_token

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


def here(obj: dict[str, Any]) -> dict[str, Any]:
    """The chart's Service leads to this machine: there are no pods and no routes to any."""
    if obj["kind"] == "Service":
        obj["spec"] = {"type": "ExternalName", "externalName": "localhost"}
    return obj


def flags(port: int) -> tuple[str, ...]:
    api = f"{OPERATOR_NAMESPACE}/{NAME}-metrics-api"
    return (
        f"--lease={OPERATOR_NAMESPACE}/{NAME}",
        f"--metrics-api-service={api}",
        f"--metrics-api-secret={NAME}-metrics-api",
        f"--metrics-api-port={port}",
        f"--metrics-api-service-port={port}",
    )


@contextlib.contextmanager
def scaling(crd: Any, folder: Path) -> Iterator[Scaled]:
    """An operator that serves the external metrics, with the chart's rights."""
    port, agent_port = free_port(), free_port()
    for obj in chart_rights("metrics-api"):
        crd.apply(here(obj))
    try:
        with Operator(crd, folder, agent_port, *flags(port), ip="10.1.2.3") as running:
            yield Scaled(crd, running, agent_port, port)
    finally:
        crd.kubectl("delete", "apiservice", API_SERVICE, "--ignore-not-found")


@contextlib.contextmanager
def demo(scaled: Scaled, namespace: str) -> Iterator[Agent]:
    """The agent of the one ready pod of the autoscaled service `demo`."""
    crd = scaled.crd
    crd.apply(service("demo", namespace, slo=SLO, autoscaling={"maxReplicas": 3}))
    wait_until(lambda: crd.get("deployment", "demo", namespace))
    uid = crd.get("spd", "demo", namespace)["metadata"]["uid"]
    pod = make_pod(crd, namespace, "demo", "demo-1", ready("127.0.0.3"))
    speaking = Agent("127.0.0.3", scaled.agent_port, pod, service_token(KEY.encode(), namespace, "demo", uid))
    try:
        yield speaking
    finally:
        speaking.close()
        crd.kubectl("delete", "spd", "demo", "-n", namespace)


def available(crd: Any) -> bool:
    conditions = ((crd.get("apiservice", API_SERVICE, "default") or {}).get("status") or {}).get("conditions", [])
    return any(entry["type"] == "Available" and entry["status"] == "True" for entry in conditions)


def metric(namespace: str, selector: str = "semipd_service%3Ddemo") -> str:
    return f"{ROOT_PATH}/namespaces/{namespace}/semipd_utilization_ratio?labelSelector={selector}"


def freshness(crd: Any) -> str:
    """What kube-apiserver's aggregated discovery says of our group."""
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    headers = {"Authorization": "Bearer admin-token", "Accept": accept}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(f"{crd.url}/apis", headers=headers)
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        groups = {item["metadata"]["name"]: item["versions"] for item in json.load(answer)["items"]}
    return str(groups["external.metrics.k8s.io"][0]["freshness"])
