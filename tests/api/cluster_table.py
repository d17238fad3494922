"""What the tests of the cluster table are made of: a control plane without kubelets, objects that refuse, and rows.

kube-apiserver's admission, the scheduler, and the controllers of Deployments, quotas and volumes are real. The three
nodes are objects: pods are placed and never run. What a kubelet would write is written by hand.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from tests.api.harness import programs, row, service

from e2e.lib.process import free_port
from e2e.lib.waiting import wait_until

CONTROLLERS = (
    "deployment-controller,replicaset-controller,resourcequota-controller,persistentvolume-binder-controller,"
    "persistentvolume-attach-detach-controller,taint-eviction-controller,daemonset-controller"
)
"""The last one has nothing to do: it makes the index of pods by node that the one before it needs and does not make
(Kubernetes 1.36). The other one that makes it takes nodes without a kubelet for lost."""
HUGE = {"resources": {"limits": {"memory": "3Gi", "cpu": "1"}}}
MERGE = "application/merge-patch+json"


def make_node(crd: Any, name: str, taint: str = "", **labels: str) -> None:
    """A node that seems well, whose volumes the controller attaches."""
    attach = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
    metadata = {"name": name, "annotations": attach, "labels": {"kubernetes.io/hostname": name, **labels}}
    crd.request("POST", "/api/v1/nodes", {"metadata": metadata})
    room = {"cpu": "64", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": "4" if labels else "0"}
    well = {"type": "Ready", "status": "True", "reason": "Fake"}
    status = {"status": {"capacity": room, "allocatable": room, "conditions": [well]}}
    crd.request("PATCH", f"/api/v1/nodes/{name}/status", status, MERGE)
    taints = [{"key": taint, "effect": "NoSchedule"}] if taint else []
    crd.request("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": taints}}, MERGE)


@contextlib.contextmanager
def controllers_and_scheduler(crd: Any) -> Iterator[None]:
    """The controllers and the scheduler, and three nodes."""
    bin_folder = programs("kube-controller-manager", "kube-scheduler")
    config = f"--kubeconfig={crd.kubeconfig}"
    commands = {
        "kube-controller-manager": [config, f"--controllers={CONTROLLERS}", "--leader-elect=false"],
        "kube-scheduler": [config, "--leader-elect=false"],
    }
    nodes = {"n1": {}, "n2": {}, "gpu": {"nvidia.com/gpu.sharing-strategy": "time-slicing"}}
    for name, labels in nodes.items():
        make_node(crd, name, "nvidia.com/gpu" if labels else "", **labels)
    running = []
    for name, flags in commands.items():
        log = (crd.folder / f"{name}.log").open("wb")
        command = [bin_folder / name, f"--secure-port={free_port()}", "--bind-address=127.0.0.1", *flags]
        running.append(subprocess.Popen(command, stdout=log, stderr=log))
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
        for name in nodes:
            crd.request("DELETE", f"/api/v1/nodes/{name}")


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


def claim(mode: str = "ReadWriteOnce", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}, **spec},
    }


def volume(name: str, mode: str, **spec: Any) -> dict[str, Any]:
    """Bound to the claim `models` of whatever namespace the row has."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {"accessModes": [mode], "capacity": {"storage": "1Gi"}, "storageClassName": name, **spec},
    }


def denying(name: str, namespace: str, kind: str) -> list[dict[str, Any]]:
    """A policy of the platform that denies a kind in one namespace."""
    rule = {"apiGroups": ["", "apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": [kind, "limitranges"]}
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    validation = {"expression": "false", "message": "images must come from registry.team"}
    policy: dict[str, Any] = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]},
    }
    spec = {"policyName": name, "validationActions": ["Deny"], "matchResources": here}
    return [policy, {**policy, "kind": "ValidatingAdmissionPolicyBinding", "spec": spec}]


def denied(namespace: str) -> dict[str, Any]:
    """What the policies above deny, too: they take a moment until they are in force."""
    meta = {"name": "probe", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "LimitRange", "metadata": meta, "spec": {"limits": []}}


def webhook_away(namespace: str) -> dict[str, Any]:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    hook = {
        "name": "policy.team.io",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 2,
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "policy.team.io"},
        "webhooks": [hook],
    }


def template(**spec: Any) -> dict[str, Any]:
    return {"podTemplate": {"spec": spec}}


SPREAD = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"semipd.io/service": "table"}}}
        ]
    }
}
"""No two pods on one node."""
PVC = {"model": {"uri": "pvc://models/m"}}


@dataclass(frozen=True)
class Row:
    reason: str
    """As the column REASON has it."""
    message: str
    """A pattern of the line ``Message:``: cause, in the words of who refuses, and remedy."""
    spec: dict[str, Any] = field(default_factory=dict)
    objects: list[dict[str, Any]] = field(default_factory=list)
    cluster: Callable[[str], list[dict[str, Any]]] = lambda _: []
    """Objects without a namespace, for the row's."""
    where: tuple[str, ...] = ("Available", "Ready")
    """The conditions whose message it is: each of them."""


def messages(control_plane: Any, namespace: str, name: str = "table") -> dict[str, str]:
    """The lines ``Message:`` of ``kubectl describe spd`` by the ``Type:`` of their conditions, white space aside."""
    described = control_plane.kubectl("describe", "spd", name, "-n", namespace).stdout
    found, last = {}, ""
    for line in (" ".join(line.split()) for line in described.splitlines()):
        if line.startswith(("Message:", "Last Transition Time:")):  # the first line of a condition, and its message
            last = line.removeprefix("Message:").strip() if line.startswith("Message:") else ""
        elif line.startswith("Type:"):
            found[line.removeprefix("Type:").strip()] = last
    return found


def make(control_plane: Any, namespace: str, one: Row) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", namespace, label)
    for obj in one.cluster(namespace):
        control_plane.apply(obj)
        if obj["kind"] == "ValidatingAdmissionPolicyBinding":
            wait_until(lambda: "denied" in control_plane.apply(denied(namespace), "--dry-run=server", ok=False).stderr)
    for obj in one.objects:
        control_plane.apply({**obj, "metadata": {**obj["metadata"], "namespace": namespace}})
        if obj["kind"] == "ResourceQuota":
            wait_until(lambda: (control_plane.get("quota", "team", namespace).get("status") or {}).get("hard"))
    control_plane.apply(service("table", namespace, **one.spec))


def shows(control_plane: Any, namespace: str, one: Row, *, keep: bool = False) -> None:
    """The row has the reason; in the description each of the row's conditions has cause and remedy."""

    def told() -> bool:
        said = messages(control_plane, namespace)
        reason = row(control_plane, namespace, "table")[1:3] == ["False", one.reason]
        return reason and all(fnmatchcase(said.get(kind, ""), one.message) for kind in one.where)

    wait_until(told, describe=lambda: (row(control_plane, namespace, "table"), messages(control_plane, namespace)))
    print(control_plane.kubectl("get", "spd", "table", "-n", namespace).stdout, messages(control_plane, namespace))
    if keep:
        return
    for obj in one.cluster(namespace):
        control_plane.kubectl("delete", obj["kind"], obj["metadata"]["name"], "--wait=false")
    clear(control_plane, namespace)


def clear(control_plane: Any, namespace: str) -> None:
    """No garbage is collected here, and what is left would keep the controllers busy, those of later modules, too."""
    control_plane.kubectl("delete", "spd", "table", "-n", namespace)
    for path in ("apis/apps/v1", "deployments"), ("apis/apps/v1", "replicasets"), ("api/v1", "pods"):
        control_plane.request("DELETE", f"/{path[0]}/namespaces/{namespace}/{path[1]}?gracePeriodSeconds=0")


def pods(control_plane: Any, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
    return found


def patch_pod(control_plane: Any, namespace: str, name: str, status: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
    patched: dict[str, Any] = control_plane.request("PATCH", path, {"status": status}, MERGE)
    return patched
