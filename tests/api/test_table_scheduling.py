"""What the scheduler finds no place for: cause and remedy, in ``kubectl get`` and ``kubectl describe``."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.cluster_table import (
    MERGE,
    PVC,
    SPREAD,
    Row,
    claim,
    clear,
    make,
    patch_pod,
    pods,
    shows,
    template,
    volume,
)
from tests.api.harness import KEY, Agent, condition, ready, row

from e2e.lib.waiting import wait_until
from semipd_agent.contract import service_token

pytestmark = pytest.mark.api


def on(node: str) -> dict[str, Any]:
    """Of a volume: from which node it is reached."""
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    return {"required": {"nodeSelectorTerms": [term]}}


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
        lambda _: [volume("afar", "ReadWriteOnce", local={"path": "/m"}, nodeAffinity=on("afar"))],
    ),
    "volume on one node, two replicas apart": Row(
        "VolumeElsewhere(models)",
        "table-*: *didn't match PersistentVolume's node affinity*. Remedy: Free or add such a node *, use a "
        "ReadWriteMany claim, or one replica.",
        {**PVC, "replicas": 2, **template(affinity=SPREAD)},
        [claim(storageClassName="here", volumeName="here")],
        lambda _: [volume("here", "ReadWriteOnce", local={"path": "/m"}, nodeAffinity=on("n1"))],
    ),
    "scheduling gate": Row(
        "Unschedulable(schedulingGates)",
        "table-*: Scheduling is blocked due to non-empty scheduling gates. Remedy: Have the controller that the gate *",
        template(schedulingGates=[{"name": "queue.team.io/admission"}]),
    ),
    "no gpu": Row(
        "Unschedulable(nvidia.com/gpu)",
        "table-*: 0/3 nodes are available: *Insufficient nvidia.com/gpu*; not tolerated: nvidia.com/gpu:NoSchedule "
        "(node gpu). Remedy: Add a node that has what the message names, or ask for less: spec.engine.resources, *. "
        "engine.device cpu needs no GPU.",
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
        "Unschedulable(taint/nvidia.com/gpu)",
        "table-*: 0/3 nodes are available: *had untolerated taint(s)*; not tolerated: nvidia.com/gpu:NoSchedule (node "
        "gpu). Remedy: Tolerate the taint (tolerations in spec.podTemplate), remove it (kubectl taint nodes gpu "
        "nvidia.com/gpu-), or add a node without it.",
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


def taint(control_plane: Any, node: str, *effects: str) -> None:
    taints = [{"key": "team.io/repair", "value": "disk", "effect": effect} for effect in effects]
    control_plane.request("PATCH", f"/api/v1/nodes/{node}", {"spec": {"taints": taints}}, MERGE)


def placed(control_plane: Any, namespace: str, *nodes: str) -> list[dict[str, Any]]:
    """The pods that stay, once each of `nodes` has one."""
    found = [pod for pod in pods(control_plane, namespace) if not pod["metadata"].get("deletionTimestamp")]
    return found if sorted(pod["spec"].get("nodeName", "") for pod in found) == sorted(nodes) else []


TAINTED = Row(
    "Unschedulable(taint/team.io/repair)",
    "table-*: 0/3 nodes are available: *had untolerated taint(s)*; not tolerated: team.io/repair=disk:NoExecute (node "
    "n1), team.io/repair=disk:NoSchedule (node n1). Remedy: Tolerate the taint (tolerations in spec.podTemplate), "
    "remove it (kubectl taint nodes n1 team.io/repair-), or add a node without it.",
    template(nodeSelector={"kubernetes.io/hostname": "n1"}),
)


def test_a_taint_on_the_node_of_a_pod_that_runs(control_plane: Any, namespace: str) -> None:
    """NoSchedule leaves it alone, NoExecute takes it away, and its successor finds no node. Kubernetes' own controller
    and scheduler do it, and neither names the taint."""
    make(control_plane, namespace, TAINTED)
    [pod] = wait_until(lambda: placed(control_plane, namespace, "n1"))

    def told() -> str:
        events = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        return "; ".join(event["message"] for event in events if event["reason"] == "PodDisrupted")

    try:
        taint(control_plane, "n1", "NoSchedule")
        wait_until(lambda: row(control_plane, namespace, "table")[1:3] == ["False", "PodsNotReady"])
        assert placed(control_plane, namespace, "n1") == [pod], "it stays"
        taint(control_plane, "n1", "NoSchedule", "NoExecute")
        shows(control_plane, namespace, TAINTED, keep=True)
        expected = (
            f"pod {pod['metadata']['name']} was evicted by a NoExecute taint of its node (DeletionByTaintManager): "
            "Taint manager: deleting due to NoExecute taint (team.io/repair=disk:NoExecute of node n1)"
        )
        wait_until(lambda: told() == expected, describe=told)
    finally:
        taint(control_plane, "n1")
    [successor] = wait_until(lambda: placed(control_plane, namespace, "n1"), describe="the remedy helps")
    assert successor["metadata"]["uid"] != pod["metadata"]["uid"]
    clear(control_plane, namespace)


def test_a_taint_that_leaves_one_pod_of_two_without_a_node(control_plane: Any, namespace: str, agent_port: int) -> None:
    """It was there before the pods; the service serves, and says what keeps the other one away."""
    words = (
        "1 of 2 pods are ready: table-*: 0/3 nodes are available: *had untolerated taint(s)*; not tolerated: *"
        "team.io/repair=disk:NoSchedule (node n1)*. Remedy: *tolerations *spec.podTemplate*"
    )
    one = Row("Unschedulable(taint,affinity)", words, {"replicas": 2, **template(affinity=SPREAD)}, where=("Ready",))
    taint(control_plane, "n1", "NoSchedule")
    try:
        make(control_plane, namespace, one)
        [pod] = wait_until(
            lambda: [pod for pod in pods(control_plane, namespace) if pod["spec"].get("nodeName") == "n2"]
        )
        uid = control_plane.get("spd", "table", namespace)["metadata"]["uid"]
        agent = Agent("127.0.0.33", agent_port, pod, service_token(KEY.encode(), namespace, "table", uid))
        try:
            patch_pod(control_plane, namespace, pod["metadata"]["name"], ready("127.0.0.33"))
            shows(control_plane, namespace, one, keep=True)
            assert condition(control_plane.get("spd", "table", namespace), "Available")["status"] == "True"
            taint(control_plane, "n1")
            wait_until(lambda: placed(control_plane, namespace, "n1", "n2"), describe="the remedy helps")
        finally:
            agent.close()
    finally:
        taint(control_plane, "n1")
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
