"""Replicas that follow the load, by Kubernetes' own HPA controller on the metric that the operator serves.

The load is a closed loop that keeps the queue of a pod from ever being empty, of prompts that its cache cannot keep and
that take longer than their target, so it is beyond one pod's capacity on any machine. What it takes in seconds is told,
and not judged.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from uuid import uuid4

import pytest

from bench.traffic import prompt_ids
from e2e.lib.cluster import Cluster
from e2e.lib.completions import Ask, SteadyLoad
from e2e.lib.fixtures import Serve
from e2e.lib.helm import SYSTEM, Operator
from e2e.lib.kube import Object
from e2e.lib.service import Service, manual, spec
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.node

API_SERVICE = "v1beta1.external.metrics.k8s.io"
PROMPTS = [Ask(prompt_ids(500, seed=s, vocabulary=range(1_000, 3_000)), 8, stream=True) for s in range(40)]
SLO = {"ttftMilliseconds": 100, "tpotMilliseconds": 60_000, "windowSeconds": 15}
QUICK = {"stabilizationWindowSeconds": 5, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 10}]}
AWAY_S = 60


def replicas(service: Service) -> tuple[int, int]:
    """(wanted by the resource, ready)."""
    obj = service.get()
    return obj["spec"]["replicas"], obj["status"]["readyReplicas"]


def metric(service: Service) -> list[str]:
    """What the API server hands to autoscalers."""
    selector = f"labelSelector=semipd_service%3D{service.name}"
    path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{service.namespace}/semipd_utilization_ratio?{selector}"
    answer = service.cluster.exec("kubectl", "get", "--raw", path, check=False).stdout
    return [item["value"] for item in json.loads(answer)["items"]] if answer else []


def served(cluster: Cluster, service: Service) -> list[int]:
    """Requests that each pod has finished."""
    counts = []
    for pod in service.pods():
        with cluster.network(), urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000/metrics") as answer:
            found = re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
        counts.append(round(sum(map(float, found))))
    return counts


def told(service: Service) -> Object:
    """For a test that fails: all that the number of pods is made from."""
    hpa = service.cluster.get("hpa", service.name, service.namespace)
    return {"replicas": replicas(service), "metric": metric(service), "hpa": hpa.get("status")}


def scaled(model: str) -> Object:
    scaling = {"maxReplicas": 2, "behavior": {"scaleUp": QUICK, "scaleDown": QUICK}}
    return spec(model, slo=SLO, partition=manual(50, 50), autoscaling=scaling)


def test_replicas_follow_the_load_and_rest_while_the_operator_is_away(
    cluster: Cluster, operator: Operator, serve: Serve, model_paths: dict[str, Path]
) -> None:
    service = serve("small", scaled(model_paths["smollm2"].name)).wait_ready()
    service.wait_condition("ScalingReady", "True", "ScalingActive")
    assert replicas(service) == (1, 1)
    first = service.lives()
    with SteadyLoad(cluster, service.url(), PROMPTS, clients=6) as load:
        began = time.monotonic()
        wait_until(lambda: replicas(service) == (2, 2), describe=lambda: told(service))
        up = time.monotonic() - began
        wait_until(lambda: min(served(cluster, service)) >= 3, describe=lambda: served(cluster, service))
        lives = service.lives()
    assert load.failures() == []
    assert first.items() <= lives.items()  # the first pod serves on

    operator.scale(0)
    gone = time.monotonic()
    wait_until(lambda: not metric(service), describe=lambda: metric(service))
    time.sleep(max(0.0, AWAY_S - (time.monotonic() - gone)))  # without a load: whoever measured would scale down
    assert service.get()["spec"]["replicas"] == 2
    assert service.lives() == lives

    operator.scale(1)
    began = time.monotonic()
    wait_until(lambda: replicas(service) == (1, 1), describe=lambda: told(service))
    down = time.monotonic() - began
    wait_until(lambda: len(service.pods()) == 1, describe=service.pods)
    service.wait_condition("ScalingReady", "True", "ScalingActive")
    service.patch({"autoscaling": None})
    hpas = ("--namespace", service.namespace, "get", "hpa", "-o", "name")
    wait_until(lambda: not cluster.kubectl(*hpas), describe=lambda: cluster.kubectl(*hpas))
    assert service.lives().items() <= lives.items()
    print(f"2 pods {up:.0f} s after the load began; operator away {AWAY_S} s; 1 pod {down:.0f} s after its return")


def test_the_registration_comes_with_the_wish_and_goes_with_the_release(
    cluster: Cluster, operator: Operator, serve: Serve, model_paths: dict[str, Path]
) -> None:
    def registered() -> str:
        """Whether it answers; empty where there is none."""
        path = "jsonpath={.status.conditions[?(@.type=='Available')].status}"
        return cluster.kubectl("get", "apiservice", API_SERVICE, "--ignore-not-found", "-o", path)

    def delete_a_namespace() -> float:
        name, began = f"gone-{uuid4().hex[:8]}", time.monotonic()
        cluster.kubectl("create", "namespace", name)
        cluster.kubectl("delete", "namespace", name, "--timeout=120s")
        return time.monotonic() - began

    wait_until(lambda: registered() == "", 150, registered)  # no service of an earlier test scales by it
    scaled = {"slo": {"ttftMilliseconds": 500}, "autoscaling": {"maxReplicas": 2}}
    serve("scaled", spec(model_paths["tiny-llama"].name, **scaled))
    wait_until(lambda: registered() == "True", describe=registered)
    took = [delete_a_namespace()]
    try:
        operator.upgrade("--set", "metricsApi.enabled=false")
        wait_until(lambda: registered() == "", describe=registered)
        took.append(delete_a_namespace())
        operator.upgrade()
        wait_until(lambda: registered() == "True", describe=registered)
        operator.uninstall()
        wait_until(lambda: registered() == "", describe=registered)
        took.append(delete_a_namespace())
        left = cluster.kubectl("get", "clusterroles,clusterrolebindings,roles,rolebindings", "-A", "-o", "name")
        assert "semipd-operator" not in left
        assert "metrics-api" not in cluster.kubectl("--namespace", SYSTEM, "get", "secrets", "-o", "name")
    finally:
        operator.uninstall()
        operator.install()
    print("namespaces deleted in " + ", ".join(f"{seconds:.0f}" for seconds in took) + " s")
