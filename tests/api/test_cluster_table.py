"""What the pods cannot say, on a real control plane: kube-apiserver's admission, the scheduler, and the controllers of
Deployments, quotas and volumes refuse; a person with only ``kubectl get`` and ``kubectl describe`` finds cause and
remedy.

There are three nodes, objects without a kubelet: pods are placed and never run. What a kubelet would write is written
by hand.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest
from tests.api.harness import KEY, Agent, Operator, condition, programs, ready, row, service

from e2e.lib.process import free_port
from e2e.lib.waiting import wait_until
from semipd_agent.contract import service_token

pytestmark = pytest.mark.api

CONTROLLERS = (
    "deployment-controller,replicaset-controller,resourcequota-controller,persistentvolume-binder-controller,"
    "persistentvolume-attach-detach-controller"
)
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


@pytest.fixture(scope="module")
def control_plane(operator: Operator, crd: Any) -> Iterator[Any]:
    """The cluster with an operator, the controllers and the scheduler."""
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
        yield crd
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


PVC = {"model": {"uri": "pvc://models/m"}}


@dataclass(frozen=True)
class Row:
    reason: str
    """As the column REASON has it."""
    message: str
    """A pattern of the line ``Message:`` of Available and of Ready: cause, in the words of who refuses, and remedy."""
    spec: dict[str, Any] = field(default_factory=dict)
    objects: list[dict[str, Any]] = field(default_factory=list)
    cluster: Callable[[str], list[dict[str, Any]]] = lambda _: []
    """Objects without a namespace, for the row's."""


TABLE: dict[str, Row] = {
    "no pod at all": Row(
        "QuotaExceeded",
        'pods "table-*" is forbidden: exceeded quota: team, requested: pods=1, used: pods=0, limited: pods=0. Remedy: '
        "Raise the quota, lower spec.replicas, or set spec.engine.resources as the message asks.",
        objects=[quota(pods="0")],
    ),
    "two of four": Row(
        "QuotaExceeded",
        'pods "table-*" is forbidden: exceeded quota: team, *used: pods=2, *Remedy: Raise the quota, *',
        {"replicas": 4},
        [quota(pods="2")],
    ),
    "limits wanted": Row(
        "QuotaExceeded",
        "*must specify limits.cpu for: engine. Remedy: *set spec.engine.resources as the message asks.",
        objects=[quota(limits_cpu="4")],
    ),
    "of the download, too": Row(
        "QuotaExceeded",
        "*must specify limits.cpu for: engine,model. Remedy: *",
        {"model": {"uri": "hf://org/m"}, "engine": {"resources": {"limits": {"memory": "1Gi"}}}},
        [quota(limits_memory="9Gi", limits_cpu="4")],
    ),
    "limit range": Row(
        "LimitRangeViolated",
        "*maximum memory usage per Container is 1Gi, but limit is 3Gi. Remedy: Set spec.engine.resources within the "
        "range that the message names, or change the LimitRange.",
        {"engine": HUGE},
        [LIMITS],
    ),
    "pod security": Row(
        "PodSecurityViolated",
        '*violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)*. Remedy: Remove from '
        "spec.podTemplate what the message names, or use a namespace of another level.",
        template(hostNetwork=True),
    ),
    "runtime class": Row(
        "RuntimeClassMissing",
        '*RuntimeClass "nvidia" not found. Remedy: Correct runtimeClassName, or install that runtime.',
        template(runtimeClassName="nvidia"),
    ),
    "priority class": Row(
        "PriorityClassMissing",
        "*no PriorityClass with name urgent was found. Remedy: Correct priorityClassName, or create that class.",
        template(priorityClassName="urgent"),
    ),
    "a policy denies pods": Row(
        "AdmissionDenied",
        "*ValidatingAdmissionPolicy 'no-pods' with binding 'no-pods' denied request: images must come from "
        "registry.team. Remedy: Change spec.podTemplate as it asks, or have the owner of that policy exempt the "
        "namespace.",
        cluster=lambda namespace: denying("no-pods", namespace, "pods"),
    ),
    "a webhook is away": Row(
        "AdmissionWebhookFailed",
        '*failed calling webhook "policy.team.io": *connection refused. Remedy: Mend the webhook that the message '
        "names; it is tried again by itself.",
        cluster=lambda namespace: [webhook_away(namespace)],
    ),
    "claim missing": Row(
        "ClaimMissing(models)",
        'table-*: *persistentvolumeclaim "models" not found*. Remedy: Create the claim, or correct spec.model.',
        PVC,
    ),
    "claim without a volume": Row(
        "ClaimUnbound",
        "table-*: *unbound immediate PersistentVolumeClaims*. Remedy: kubectl describe pvc: *",
        PVC,
        [claim()],
    ),
    "claim for one pod, two replicas": Row(
        "ClaimInUse",
        "*PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod*. Remedy: Use a "
        "ReadWriteMany or ReadOnlyMany claim, or one replica.",
        {**PVC, "replicas": 2},
        [claim("ReadWriteOncePod", storageClassName="single", volumeName="single")],
        lambda _: [volume("single", "ReadWriteOncePod", hostPath={"path": "/m"})],
    ),
    "no gpu": Row(
        "Unschedulable(nvidia.com/gpu)",
        "table-*: 0/3 nodes are available: *Insufficient nvidia.com/gpu*. Remedy: Add a node that has what the message "
        "names, or ask for less: spec.engine.resources, *. engine.device cpu needs no GPU.",
        {"engine": {"device": "cuda"}},
    ),
    "not so many cpus": Row(
        "Unschedulable(cpu)",
        "*Insufficient cpu*. Remedy: Add a node *or ask for less: spec.engine.resources, *",
        {"engine": {"resources": {"requests": {"cpu": "100"}}}},
    ),
    "no such node": Row(
        "Unschedulable(nodeSelector,taint)",
        "*didn't match Pod's node affinity/selector*. Remedy: Add a node *nodeSelector, affinity and tolerations of "
        "spec.podTemplate*",
        template(nodeSelector={"pool": "h100"}),
    ),
    "a tainted node": Row(
        "Unschedulable(nodeSelector,taint)",
        "*had untolerated taint*. Remedy: Add a node *",
        template(nodeSelector={"nvidia.com/gpu.sharing-strategy": "time-slicing"}),
    ),
}


def lines(control_plane: Any, namespace: str, name: str = "table") -> list[str]:
    """Of ``kubectl describe spd``, white space aside."""
    described = control_plane.kubectl("describe", "spd", name, "-n", namespace).stdout
    return [" ".join(line.split()) for line in described.splitlines()]


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
    """The row has the reason; Available and Ready in the description have cause and remedy."""

    def shown() -> str:
        return control_plane.kubectl("get", "spd", "table", "-n", namespace).stdout

    wait_until(
        lambda: row(control_plane, namespace, "table")[1:3] == ["False", one.reason],
        60,
        lambda: "\n".join(lines(control_plane, namespace)),
    )
    described = lines(control_plane, namespace)
    found = [line for line in described if fnmatchcase(line, f"Message: {one.message}")]
    assert found, "\n".join(described)
    print(shown(), *found, sep="\n")
    if keep:
        return
    for obj in one.cluster(namespace):
        control_plane.kubectl("delete", obj["kind"], obj["metadata"]["name"], "--wait=false")
    control_plane.kubectl("delete", "spd", "table", "-n", namespace)


UNSEEN = Row(
    "Unschedulable",
    "table-*: no scheduler has looked at it: schedulerName names none that runs. Remedy: *",
    template(schedulerName="nobody"),
)


@pytest.fixture(scope="module")
def unseen(control_plane: Any) -> str:
    """A namespace with a service that needs half a minute to be judged: it has that while other tests run."""
    answer = control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"generateName": "unseen-"}})
    make(control_plane, name := answer["metadata"]["name"], UNSEEN)
    return str(name)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("case", TABLE)
def test_cause_and_remedy_are_in_the_row_and_in_the_description(control_plane: Any, namespace: str, case: str) -> None:
    make(control_plane, namespace, TABLE[case])
    shows(control_plane, namespace, TABLE[case])


def pods(control_plane: Any, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
    return found


def patch_pod(control_plane: Any, namespace: str, name: str, status: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
    patched: dict[str, Any] = control_plane.request("PATCH", path, {"status": status}, MERGE)
    return patched


SPREAD = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"semipd.io/service": "table"}}}
        ]
    }
}
ELSEWHERE = Row(
    "ClaimInUse",
    'table-*: Multi-Attach error for volume "elsewhere" Volume is already used by pod(s) table-*. Remedy: Use a '
    "ReadWriteMany or ReadOnlyMany claim, or one replica.",
    {**PVC, "replicas": 2, **template(affinity=SPREAD)},
    [claim(storageClassName="elsewhere", volumeName="elsewhere")],
    lambda _: [volume("elsewhere", "ReadWriteOnce", csi={"driver": "disk.csi.test", "volumeHandle": "h"})],
)


def test_a_claim_for_one_node_that_is_on_another(control_plane: Any, namespace: str) -> None:
    """The scheduler does not mind; the controller that attaches volumes tells it in an event of the pod."""
    make(control_plane, namespace, ELSEWHERE)
    attachments = "/apis/storage.k8s.io/v1/volumeattachments"
    made = wait_until(lambda: control_plane.request("GET", attachments)["items"], 30)
    path = f"{attachments}/{made[0]['metadata']['name']}/status"
    control_plane.request("PATCH", path, {"status": {"attached": True}}, MERGE)  # as the driver does
    placed = wait_until(lambda: len({pod["spec"].get("nodeName", "") for pod in pods(control_plane, namespace)}) == 2)
    assert placed
    began = (datetime.now(UTC) - timedelta(seconds=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    creating = {"name": "engine", "image": "e", "imageID": "", "restartCount": 0, "ready": False}
    creating["state"] = {"waiting": {"reason": "ContainerCreating"}}
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": began}
    for pod in pods(control_plane, namespace):
        status = {"conditions": [scheduled], "containerStatuses": [creating]}
        patch_pod(control_plane, namespace, pod["metadata"]["name"], status)
    shows(control_plane, namespace, ELSEWHERE)


SHARED = Row(
    "GPUShared",
    "table-*: node gpu gives its GPU to several pods (nvidia.com/gpu.sharing-strategy=time-slicing). Remedy: Use nodes "
    "that do not share GPUs (nodeSelector nvidia.com/gpu.sharing-strategy: none), or set partition.mode Disabled.",
    {"engine": {"device": "cuda"}, **template(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}])},
)


def test_a_gpu_that_the_device_plugin_gives_to_several_pods(
    control_plane: Any, namespace: str, agent_port: int
) -> None:
    """The pod serves, and its agent sees nothing wrong: the split is what cannot hold."""
    make(control_plane, namespace, SHARED)
    [pod] = wait_until(lambda: [pod for pod in pods(control_plane, namespace) if pod["spec"].get("nodeName") == "gpu"])
    uid = control_plane.get("spd", "table", namespace)["metadata"]["uid"]
    agent = Agent("127.0.0.31", agent_port, pod, service_token(KEY.encode(), namespace, "table", uid))
    try:
        patch_pod(control_plane, namespace, pod["metadata"]["name"], ready("127.0.0.31"))
        wait_until(lambda: condition(control_plane.get("spd", "table", namespace), "Available")["status"] == "True")
        disabled = {"spec": {"partition": {"mode": "Disabled"}}}
        shows(control_plane, namespace, SHARED, keep=True)
        path = f"/apis/semipd.io/v1alpha1/namespaces/{namespace}/semipdservices/table"
        control_plane.request("PATCH", path, disabled, MERGE)
        wait_until(lambda: row(control_plane, namespace, "table")[1] == "True", describe="the remedy helps")
    finally:
        agent.close()
    control_plane.kubectl("delete", "spd", "table", "-n", namespace)


def test_a_policy_that_denies_the_deployment(control_plane: Any, namespace: str) -> None:
    one = Row(
        "AdmissionDenied",
        "Deployment table: *ValidatingAdmissionPolicy 'no-deployments' *denied request: images must come from "
        "registry.team. Remedy: Change spec.podTemplate as it asks, *",
        cluster=lambda namespace: denying("no-deployments", namespace, "deployments"),
    )
    make(control_plane, namespace, one)
    shows(control_plane, namespace, one)


def test_a_scheduler_that_does_not_run(control_plane: Any, unseen: str) -> None:
    shows(control_plane, unseen, UNSEEN)


def test_pods_as_rendered_fit_a_restricted_namespace_with_quota_and_limits(control_plane: Any, namespace: str) -> None:
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    both = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}
    wanted = quota(limits_cpu="4", limits_memory="9Gi", requests_cpu="4", requests_memory="9Gi")
    control_plane.apply({**wanted, "metadata": {"name": "team", "namespace": namespace}})
    wait_until(lambda: (control_plane.get("quota", "team", namespace).get("status") or {}).get("hard"))
    control_plane.apply(service("fits", namespace, model={"uri": "hf://org/m"}, engine={"resources": both}))
    wait_until(lambda: (control_plane.get("spd", "fits", namespace).get("status") or {}).get("replicas") == 1, 60)


def test_an_autoscaler_of_the_deployment_is_named_with_the_remedy(control_plane: Any, namespace: str) -> None:
    control_plane.apply(service("fought", namespace, replicas=0))
    wait_until(lambda: row(control_plane, namespace, "fought")[1] == "True")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "fought"}
    hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4}
    control_plane.apply({**hpa, "metadata": {"name": "theirs", "namespace": namespace}, "spec": spec})
    live = wait_until(
        lambda: (
            (got := control_plane.get("spd", "fought", namespace))
            and condition(got, "ScalingReady").get("reason") == "ConflictingAutoscaler"
            and got
        ),
        30,
    )
    assert "HorizontalPodAutoscaler theirs" in condition(live, "ScalingReady")["message"]
    assert (
        "Remedy: Set its scaleTargetRef to the SemiPDService, or delete it."
        in condition(live, "ScalingReady")["message"]
    )
    control_plane.kubectl("delete", "hpa", "theirs", "-n", namespace)
    wait_until(lambda: not condition(control_plane.get("spd", "fought", namespace), "ScalingReady"), 30)
