"""What the scheduler finds no place for: cause and remedy, in ``kubectl get`` and ``kubectl describe``."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.cluster_table import MERGE, PVC, Row, claim, clear, make, patch_pod, pods, shows, template, volume

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api


_AFAR = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["afar"]}]}
AFAR = {"required": {"nodeSelectorTerms": [_AFAR]}}
TABLE: dict[str, Row] = {
    "claim missing": Row(
        "ClaimMissing(models)",
        'table-*: *persistentvolumeclaim "models" not found*. Remedy: Create the claim, or correct spec.model.',
        PVC,
    ),
    "claim without a volume": Row(
        "ClaimUnbound(models)",
        "table-*: claim models: *no storage class is set*; *unbound immediate PersistentVolumeClaims*. Remedy: kubectl "
        "describe pvc: *",
        PVC,
        [claim()],
    ),
    "volume on a node that takes no pod": Row(
        "VolumeElsewhere(models)",
        "table-*: *didn't match PersistentVolume's node affinity*. Remedy: Free or add such a node *",
        PVC,
        [claim(storageClassName="afar", volumeName="afar")],
        lambda _: [volume("afar", "ReadWriteOnce", local={"path": "/m"}, nodeAffinity=AFAR)],
    ),
    "scheduling gate": Row(
        "Unschedulable(schedulingGates)",
        "table-*: Scheduling is blocked due to non-empty scheduling gates. Remedy: Have the controller that the gate *",
        template(schedulingGates=[{"name": "queue.team.io/admission"}]),
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
    "a node that never was": Row(
        "NodeNotReady(nowhere)",
        "table-*: node nowhere is gone. Remedy: kubectl describe node: *where spec.podTemplate names it (nodeName), *",
        template(nodeName="nowhere"),
    ),
    "claim for one pod, two replicas": Row(
        "ClaimInUse(models)",
        "*PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod*. Remedy: Use a "
        "ReadWriteMany or ReadOnlyMany claim, or one replica.",
        {**PVC, "replicas": 2},
        [claim("ReadWriteOncePod", storageClassName="single", volumeName="single")],
        lambda _: [volume("single", "ReadWriteOncePod", hostPath={"path": "/m"})],
    ),
}
UNSEEN = Row(
    "Unschedulable",
    "table-*: no scheduler has looked at it: schedulerName names none that runs (nobody). Remedy: Correct *",
    template(schedulerName="nobody"),
)

DEVICES = Row(
    "Unschedulable(resourceClaim)",
    "table-*: *resource*claim*gone*. Remedy: kubectl describe resourceclaim: create it, or correct resourceClaims in "
    "spec.podTemplate.",
    template(resourceClaims=[{"name": "gpu", "resourceClaimName": "gone"}]),
)
WAITS = Row(
    "ClaimUnbound(models)",
    "table-*: claim models: Waiting for a volume to be created *disk.csi.test*; the scheduler has chosen node *, and "
    "waits for a volume of claim models: no provisioner makes it. *",
    PVC,
    [claim(storageClassName="waits")],
    lambda _: [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "waits"},
            "provisioner": "disk.csi.test",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    ],
)


@pytest.fixture(scope="module")
def waits(control_plane: Any) -> str:
    answer = control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"generateName": "waits-"}})
    make(control_plane, name := answer["metadata"]["name"], WAITS)
    return str(name)


@pytest.fixture(scope="module")
def unseen(control_plane: Any) -> str:
    """A namespace with a service that needs half a minute to be judged: it has that while other tests run."""
    answer = control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"generateName": "unseen-"}})
    make(control_plane, name := answer["metadata"]["name"], UNSEEN)
    return str(name)


@pytest.fixture(scope="module")
def devices(control_plane: Any) -> str:
    answer = control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"generateName": "devices-"}})
    make(control_plane, name := answer["metadata"]["name"], DEVICES)
    return str(name)


@pytest.mark.usefixtures("unseen", "waits", "devices")
@pytest.mark.parametrize("case", TABLE)
def test_cause_and_remedy_are_in_the_row_and_in_the_description(control_plane: Any, namespace: str, case: str) -> None:
    make(control_plane, namespace, TABLE[case])
    shows(control_plane, namespace, TABLE[case])


def test_a_scheduler_that_does_not_run(control_plane: Any, unseen: str) -> None:
    shows(control_plane, unseen, UNSEEN)


def test_a_resource_claim_that_is_not_there(control_plane: Any, devices: str) -> None:
    """Of devices (DRA): the scheduler says nothing while it waits for it."""
    shows(control_plane, devices, DEVICES)


def test_a_claim_that_waits_for_its_provisioner(control_plane: Any, waits: str) -> None:
    """The scheduler has looked at the pod, and says nothing in its conditions."""
    shows(control_plane, waits, WAITS)


def test_a_taint_on_the_node_of_a_pod_that_runs(control_plane: Any, namespace: str) -> None:
    """NoExecute takes it away, and its successor finds no node. What the controller of taints does is done by hand: it
    needs another one, which takes nodes without a kubelet for lost."""
    one = Row(
        "Unschedulable(nodeSelector,taint)",
        "table-*: 0/3 nodes are available: *had untolerated taint*. Remedy: Add a node *tolerations of "
        "spec.podTemplate*",
        template(nodeSelector={"kubernetes.io/hostname": "n1"}),
    )
    make(control_plane, namespace, one)
    [pod] = wait_until(lambda: [pod for pod in pods(control_plane, namespace) if pod["spec"].get("nodeName") == "n1"])

    def taint(*effects: str) -> None:
        taints = [{"key": "team.io/repair", "effect": effect} for effect in effects]
        control_plane.request("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": taints}}, MERGE)

    def told() -> str:
        events = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        return "; ".join(event["message"] for event in events if event["reason"] == "PodDisrupted")

    try:
        taint("NoSchedule", "NoExecute")
        words = "Taint manager: deleting due to NoExecute taint"
        evicted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": words}
        patch_pod(control_plane, namespace, pod["metadata"]["name"], {"conditions": [evicted]})
        control_plane.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}")
        shows(control_plane, namespace, one, keep=True)
        expected = (
            f"pod {pod['metadata']['name']} was evicted by a NoExecute taint of its node (DeletionByTaintManager)"
        )
        wait_until(lambda: told().startswith(expected), describe=told)
    finally:
        taint()
    successor = wait_until(
        lambda: [
            one
            for one in pods(control_plane, namespace)
            if one["spec"].get("nodeName") == "n1" and one["metadata"]["uid"] != pod["metadata"]["uid"]
        ],
        describe="the remedy helps",
    )
    assert len(successor) == 1
    clear(control_plane, namespace)


def test_a_pod_that_was_preempted_is_told_by_its_successor(control_plane: Any, namespace: str) -> None:
    """Alone it would only say what it lacks: who has that now, and how to have it back, is the cause."""
    here = {"kubernetes.io/hostname": "n2"}
    priority = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "above"},
        "value": 1000,
    }
    one = Row(
        "Preempted(cpu)",
        "table-*: 0/3 nodes are available: *Insufficient cpu*; table-*, before it, was preempted: default-scheduler: "
        "preempting to accommodate a higher priority pod. Remedy: Give the pods a priority (priorityClassName in "
        "spec.podTemplate) *",
        {**template(nodeSelector=here), "engine": {"resources": {"requests": {"cpu": "60"}}}},
        cluster=lambda _: [priority],
    )
    make(control_plane, namespace, one)
    wait_until(lambda: [pod for pod in pods(control_plane, namespace) if pod["spec"].get("nodeName") == "n2"])
    safe = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "c", "image": "i", "resources": {"requests": {"cpu": "60"}}, "securityContext": safe}
    control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "intruder", "namespace": namespace},
            "spec": {"priorityClassName": "above", "nodeSelector": here, "containers": [container]},
        }
    )
    shows(control_plane, namespace, one)
