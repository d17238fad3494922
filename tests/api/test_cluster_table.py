"""What the pods cannot say, on a real control plane: kube-apiserver's admission, the controllers of Deployments and
quotas, and the scheduler refuse; a person with only ``kubectl get`` and ``kubectl describe`` finds cause and remedy.

There is one node, an object without a kubelet: pods are placed and never run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from tests.api.conftest import programs
from tests.api.harness import Operator, condition, row, service, until

from e2e.lib.process import free_port

pytestmark = pytest.mark.api

CONTROLLERS = "deployment-controller,replicaset-controller,resourcequota-controller"
HUGE = {"resources": {"limits": {"memory": "3Gi", "cpu": "1"}}}


@pytest.fixture(scope="module")
def control_plane(operator: Operator, crd: Any) -> Iterator[Any]:
    """The cluster with an operator, the controllers and the scheduler."""
    bin_folder = programs("kube-controller-manager", "kube-scheduler")
    config = f"--kubeconfig={crd.kubeconfig}"
    commands = {
        "kube-controller-manager": [config, f"--controllers={CONTROLLERS}", "--leader-elect=false"],
        "kube-scheduler": [config, "--leader-elect=false"],
    }
    crd.request("POST", "/api/v1/nodes", {"metadata": {"name": "n1"}})
    room = {"cpu": "64", "memory": "64Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "reason": "Fake"}
    status = {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}
    crd.request("PATCH", "/api/v1/nodes/n1/status", status, "application/merge-patch+json")
    taints = {"spec": {"taints": []}}
    crd.request("PATCH", "/api/v1/nodes/n1", taints, "application/merge-patch+json")
    running = []
    for name, flags in commands.items():
        log = (crd.folder / f"{name}.log").open("wb")
        command = [bin_folder / name, f"--secure-port={free_port()}", "--bind-address=127.0.0.1", *flags]
        running.append(subprocess.Popen(command, stdout=log, stderr=log))
    try:
        yield crd
    finally:
        for process in running:
            process.kill()
            process.wait()
        crd.request("DELETE", "/api/v1/nodes/n1")


def quota(**hard: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "team"},
        "spec": {"hard": {name.replace("_", "."): value for name, value in hard.items()}},
    }


LIMITS = {
    "apiVersion": "v1",
    "kind": "LimitRange",
    "metadata": {"name": "team"},
    "spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]},
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "models"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}
PVC = {"model": {"uri": "pvc://models/m"}}
TABLE: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str, str]] = {
    "no pod at all": ([quota(pods="0")], {}, "QuotaExceeded", "exceeded quota: team"),
    "two of four": ([quota(pods="2")], {"replicas": 4}, "QuotaExceeded", "exceeded quota: team"),
    "limits wanted": ([quota(limits_cpu="4")], {}, "QuotaExceeded", "must specify limits.cpu for: engine"),
    "of the download, too": (
        [quota(limits_memory="9Gi", limits_cpu="4")],
        {"model": {"uri": "hf://org/m"}, "engine": {"resources": {"limits": {"memory": "1Gi"}}}},
        "QuotaExceeded",
        "must specify limits.cpu for: engine,model",
    ),
    "limit range": ([LIMITS], {"engine": HUGE}, "LimitRangeViolated", "maximum memory usage per Container is 1Gi"),
    "pod security": (
        [],
        {"podTemplate": {"spec": {"hostNetwork": True}}},
        "PodSecurityViolated",
        'violates PodSecurity "restricted',
    ),
    "runtime class": (
        [],
        {"podTemplate": {"spec": {"runtimeClassName": "nvidia"}}},
        "RuntimeClassMissing",
        'RuntimeClass "nvidia" not found',
    ),
    "claim missing": ([], PVC, "ClaimMissing(models)", 'persistentvolumeclaim "models" not found'),
    "claim without a volume": ([CLAIM], PVC, "ClaimUnbound", "unbound immediate PersistentVolumeClaims"),
    "no gpu": ([], {"engine": {"device": "cuda"}}, "Unschedulable(nvidia.com/gpu)", "Insufficient nvidia.com/gpu"),
}


@pytest.mark.parametrize("case", TABLE)
def test_cause_and_words_are_in_the_row_and_in_the_description(control_plane: Any, namespace: str, case: str) -> None:
    objects, spec, reason, words = TABLE[case]
    label = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", namespace, label)
    for obj in objects:
        control_plane.apply({**obj, "metadata": {**obj["metadata"], "namespace": namespace}})
        if obj["kind"] == "ResourceQuota":
            assert until(lambda: (control_plane.get("quota", "team", namespace).get("status") or {}).get("hard"))
    control_plane.apply(service("table", namespace, **spec))
    assert until(lambda: row(control_plane, namespace, "table")[1:3] == ["False", reason], 60), control_plane.kubectl(
        "describe", "spd", "table", "-n", namespace
    ).stdout
    described = " ".join(control_plane.kubectl("describe", "spd", "table", "-n", namespace).stdout.split())
    live = control_plane.get("spd", "table", namespace)
    for kind in ("Available", "Ready"):
        assert words in condition(live, kind)["message"] and words in described
    if case == "two of four":
        assert live["status"]["replicas"] == 2
    control_plane.kubectl("delete", "spd", "table", "-n", namespace)


def test_pods_as_rendered_fit_a_restricted_namespace_with_quota_and_limits(control_plane: Any, namespace: str) -> None:
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    both = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}
    wanted = quota(limits_cpu="4", limits_memory="9Gi", requests_cpu="4", requests_memory="9Gi")
    control_plane.apply({**wanted, "metadata": {"name": "team", "namespace": namespace}})
    assert until(lambda: (control_plane.get("quota", "team", namespace).get("status") or {}).get("hard"))
    control_plane.apply(service("fits", namespace, model={"uri": "hf://org/m"}, engine={"resources": both}))
    assert until(lambda: (control_plane.get("spd", "fits", namespace).get("status") or {}).get("replicas") == 1, 60)


def test_an_autoscaler_of_the_deployment_is_named_with_the_remedy(control_plane: Any, namespace: str) -> None:
    control_plane.apply(service("fought", namespace, replicas=0))
    assert until(lambda: row(control_plane, namespace, "fought")[1] == "True")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "fought"}
    hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4}
    control_plane.apply({**hpa, "metadata": {"name": "theirs", "namespace": namespace}, "spec": spec})
    live = until(
        lambda: (
            (got := control_plane.get("spd", "fought", namespace))
            and condition(got, "ScalingReady").get("reason") == "ConflictingAutoscaler"
            and got
        ),
        30,
    )
    assert "HorizontalPodAutoscaler theirs" in condition(live, "ScalingReady")["message"]
    assert "SemiPDService fought, or delete it" in condition(live, "ScalingReady")["message"]
    control_plane.kubectl("delete", "hpa", "theirs", "-n", namespace)
    assert until(lambda: not condition(control_plane.get("spd", "fought", namespace), "ScalingReady"), 30)
