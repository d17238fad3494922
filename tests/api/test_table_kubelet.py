"""What a node says, or no longer says, of a pod that it was given: cause and remedy. Its words are written by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
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
    make_node,
    messages,
    patch_pod,
    pods,
    shows,
    template,
    volume,
)
from tests.api.harness import KEY, Agent, condition, ready, row, service

from e2e.lib.waiting import wait_until
from semipd_agent.contract import service_token

pytestmark = pytest.mark.api


SHARED = Row(
    "GPUShared",
    "table-*: node gpu gives its GPU to several pods (nvidia.com/gpu.sharing-strategy=time-slicing). Remedy: Use nodes "
    "that do not share GPUs (nodeSelector nvidia.com/gpu.sharing-strategy: none), or set partition.mode Disabled.",
    {"engine": {"device": "cuda"}, **template(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}])},
    where=("PartitionApplied", "Ready"),
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
    clear(control_plane, namespace)


def test_a_pod_that_was_evicted_is_told_by_its_successor(control_plane: Any, namespace: str) -> None:
    """Its ReplicaSet makes another and leaves it where it is: it counts no more."""
    one = Row(
        "Evicted",
        "table-*: Evicted: Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. Remedy: If it "
        "happens again: raise the limit that the message names (ephemeral-storage, *",
    )
    make(control_plane, namespace, one)
    [first] = wait_until(lambda: pods(control_plane, namespace))
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    words = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
    ended = {"phase": "Failed", "reason": "Evicted", "message": words, "startTime": now}
    patch_pod(control_plane, namespace, first["metadata"]["name"], ended)
    wait_until(lambda: len(pods(control_plane, namespace)) == 2)
    shows(control_plane, namespace, one, keep=True)
    assert control_plane.get("spd", "table", namespace)["status"]["replicas"] == 1
    clear(control_plane, namespace)


def test_a_node_that_does_not_answer_and_then_is_gone(control_plane: Any, namespace: str) -> None:
    make_node(control_plane, "lost", "lost")
    spec = {"nodeName": "lost"}
    silent = Row(
        "NodeNotReady(lost)",
        "table-*: node lost is not ready: Kubelet stopped posting node status. Remedy: kubectl describe node: *",
        template(**spec),
    )
    make(control_plane, namespace, silent)
    [pod] = wait_until(lambda: pods(control_plane, namespace))
    began = (datetime.now(UTC) - timedelta(seconds=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    away = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
    away["message"] = "Kubelet stopped posting node status."
    control_plane.request("PATCH", "/api/v1/nodes/lost/status", {"status": {"conditions": [away]}}, MERGE)
    # As the node controller leaves it: the kubelet's last word of the container is that it is ready.
    engine = {"name": "engine", "image": "e", "imageID": "", "restartCount": 0, "ready": True, "state": {"running": {}}}
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": began}
    status = {"phase": "Running", "conditions": [unready], "containerStatuses": [engine]}
    patch_pod(control_plane, namespace, pod["metadata"]["name"], status)
    shows(control_plane, namespace, silent, keep=True)
    control_plane.request("DELETE", "/api/v1/nodes/lost")
    gone = Row("NodeNotReady(lost)", "table-*: node lost is gone. Remedy: *")
    shows(control_plane, namespace, gone)


def test_a_load_balancer_that_nobody_provides_is_told(control_plane: Any, namespace: str) -> None:
    """Here is no cloud. The service would serve inside of the cluster all the same."""
    control_plane.apply(service("table", namespace, replicas=0, service={"type": "LoadBalancer"}))
    words = (
        "spec.replicas is 0; no load balancer has given Service table an address yet: kubectl describe service table"
    )

    def told() -> str:
        return messages(control_plane, namespace).get("Ready", "")

    wait_until(lambda: told() == words, describe=told)
    given = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}
    control_plane.request("PATCH", f"/api/v1/namespaces/{namespace}/services/table/status", given, MERGE)
    wait_until(lambda: told() == "spec.replicas is 0", describe=told)
    clear(control_plane, namespace)


SILENT = Row(
    "AgentUnreachable",
    "table-*: its engine is not ready, and nothing is known of it: the agent cannot be reached (*). Remedy: Allow the "
    "operator to reach port 9400 of the pods (NetworkPolicy); *",
)


def test_an_agent_that_nobody_can_reach(control_plane: Any, namespace: str) -> None:
    """Half a minute after its start: until then it may be on its way."""
    make(control_plane, namespace, SILENT)
    [pod] = wait_until(lambda: pods(control_plane, namespace))
    engine = {"name": "engine", "image": "e", "imageID": "", "restartCount": 0, "ready": False}
    engine["state"] = {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}
    there = {"phase": "Running", "podIP": "127.0.0.39", "podIPs": [{"ip": "127.0.0.39"}]}
    patch_pod(control_plane, namespace, pod["metadata"]["name"], {**there, "containerStatuses": [engine]})
    shows(control_plane, namespace, SILENT)


ELSEWHERE = Row(
    "ClaimInUse(models)",
    'table-*: claim models: Multi-Attach error for volume "elsewhere" Volume is already used by pod(s) table-*. '
    "Remedy: Use a ReadWriteMany or ReadOnlyMany claim, or one replica.",
    {**PVC, "replicas": 2, **template(affinity=SPREAD)},
    [claim(storageClassName="elsewhere", volumeName="elsewhere")],
    lambda _: [volume("elsewhere", "ReadWriteOnce", csi={"driver": "disk.csi.test", "volumeHandle": "h"})],
)


def test_a_claim_for_one_node_that_is_on_another(control_plane: Any, namespace: str, agent_port: int) -> None:
    """The scheduler does not mind; the controller that attaches volumes tells it in an event of the pod."""
    make(control_plane, namespace, ELSEWHERE)
    attachments = "/apis/storage.k8s.io/v1/volumeattachments"
    # Where the claim was not bound yet when the pod came, the controller looks again after a minute.
    made = wait_until(lambda: control_plane.request("GET", attachments)["items"])
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
    shows(control_plane, namespace, ELSEWHERE, keep=True)

    # The pod that has the volume serves: what the other one lacks is told all the same.
    [first] = [pod for pod in pods(control_plane, namespace) if pod["spec"]["nodeName"] == made[0]["spec"]["nodeName"]]
    uid = control_plane.get("spd", "table", namespace)["metadata"]["uid"]
    agent = Agent("127.0.0.32", agent_port, first, service_token(KEY.encode(), namespace, "table", uid))
    try:
        patch_pod(control_plane, namespace, first["metadata"]["name"], ready("127.0.0.32"))
        words = ELSEWHERE.message
        shows(control_plane, namespace, replace(ELSEWHERE, message=f"1 of 2 pods are ready: {words}", where=("Ready",)))
    finally:
        agent.close()
