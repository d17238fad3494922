"""The real operator process, with the chart's rights only, against the real API server.

Pods are made by hand, as there is no controller manager; a stand-in speaks the agent's real contract on their IPs.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import free_port
from tests.api.harness import KEY, Agent, Operator, chart_rights, condition, make_pod, ready, service, until

from semipd_agent.contract import AgentFile, PartitionState, Split, service_token

pytestmark = pytest.mark.api

POD_MONITOR_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {
            "kind": "PodMonitor",
            "plural": "podmonitors",
            "singular": "podmonitor",
            "listKind": "PodMonitorList",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def agent_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def operator(crd: Any, tmp_path_factory: pytest.TempPathFactory, agent_port: int) -> Iterator[Operator]:
    for obj in [*chart_rights(crd), POD_MONITOR_CRD]:
        crd.apply(obj)
    running = Operator(crd, tmp_path_factory.mktemp("operator"), agent_port, (free_port(), free_port()))
    try:
        assert until(running.healthy), running.log.read_text()[-3000:]
        yield running
        print(running.log.read_text()[-6000:])
    finally:
        if running.process.poll() is None:
            running.stop()


@contextlib.contextmanager
def serving(crd: Any, namespace: str, name: str, ip: str, agent_port: int, **spec: Any) -> Iterator[Agent]:
    """A service with one ready pod, whose agent answers."""
    crd.apply(service(name, namespace, **spec))
    assert until(lambda: crd.get("deployment", name, namespace))
    uid = crd.get("spd", name, namespace)["metadata"]["uid"]
    pod = make_pod(crd, namespace, name, f"{name}-1", ready(ip))
    agent = Agent(ip, agent_port, pod, service_token(KEY.encode(), namespace, name, uid))
    try:
        assert until(lambda: condition(crd.get("spd", name, namespace), "PartitionApplied").get("status") == "True")
        yield agent
    finally:
        agent.close()


def row(crd: Any, namespace: str, name: str, *more: str) -> list[str]:
    return crd.kubectl("get", "spd", name, "-n", namespace, "--no-headers", *more).stdout.split()


def test_children_appear_and_drift_is_corrected(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("demo", namespace, replicas=2))
    deployment = until(lambda: crd.get("deployment", "demo", namespace))
    assert deployment["spec"]["replicas"] == 2
    for kind, name in (("service", "demo"), ("configmap", "demo-agent"), ("pdb", "demo")):
        child = until(lambda kind=kind, name=name: crd.get(kind, name, namespace))
        assert child["metadata"]["ownerReferences"][0]["kind"] == "SemiPDService", kind
    live = until(lambda: (got := crd.get("spd", "demo", namespace)).get("status", {}).get("selector") and got)
    assert condition(live, "SpecAccepted")["status"] == "True"
    assert condition(live, "Available")["reason"] == "NoPods"
    assert live["status"]["observedGeneration"] == live["metadata"]["generation"]
    assert not live["metadata"].get("finalizers")
    # kubectl's own annotation is the only one: the operator writes no metadata.
    assert set(live["metadata"]["annotations"]) == {"kubectl.kubernetes.io/last-applied-configuration"}

    crd.kubectl("scale", "deployment/demo", "-n", namespace, "--replicas=7")
    assert until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 2)
    crd.kubectl("delete", "service/demo", "-n", namespace)
    assert until(lambda: crd.get("service", "demo", namespace))

    crd.kubectl("scale", "spd/demo", "-n", namespace, "--replicas=1")
    assert until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 1)
    assert until(lambda: crd.get("pdb", "demo", namespace) is None), "a single pod keeps no budget"


def test_a_patch_reaches_the_agent_and_the_status_at_once(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    crd.apply(service("live", namespace, partition={"mode": "Manual", "prefillPercent": 60, "decodePercent": 80}))
    until(lambda: crd.get("deployment", "live", namespace))
    uid = crd.get("spd", "live", namespace)["metadata"]["uid"]
    pod = make_pod(crd, namespace, "live", "live-1", ready("127.0.0.2"))
    agent = Agent("127.0.0.2", agent_port, pod, service_token(KEY.encode(), namespace, "live", uid))
    try:
        assert until(lambda: row(crd, namespace, "live")[1:6] == ["True", "Ready", "1", "60/80", "paced"]), row()
        template = crd.get("deployment", "live", namespace)["spec"]["template"]

        patch = {"spec": {"partition": {"prefillPercent": 30}, "slo": {"ttftMilliseconds": 300}}}
        crd.kubectl("patch", "spd", "live", "-n", namespace, "--type=merge", "-p", json.dumps(patch))
        began = time.monotonic()

        def applied() -> Any:
            return crd.get("spd", "live", namespace)["status"]["partition"].get("applied")

        assert until(lambda: applied() == {"prefillPercent": 30, "decodePercent": 80}, 5), applied()
        assert time.monotonic() - began < 5
        assert agent.puts[-1].slo is not None and agent.puts[-1].slo.ttft_milliseconds == 300
        assert crd.get("deployment", "live", namespace)["spec"]["template"] == template, "nothing may roll"

        agent.state = PartitionState.FAILED
        assert until(lambda: condition(crd.get("spd", "live", namespace), "PartitionApplied")["status"] == "False", 10)
        assert condition(crd.get("spd", "live", namespace), "PartitionApplied")["reason"] == "WorkerNotResponding"
        agent.state = PartitionState.APPLIED
        assert until(lambda: row(crd, namespace, "live")[1] == "True")
        events = crd.kubectl("get", "events", "-n", namespace, "-o", "json").stdout
        assert "PartitionApplyFailed" in {event["reason"] for event in json.loads(events)["items"]}
    finally:
        agent.close()
    assert until(
        lambda: condition(crd.get("spd", "live", namespace), "PartitionApplied").get("reason") == "AgentUnreachable", 25
    )


def test_columns_and_scale_subresource(operator: Operator, crd: Any, namespace: str, agent_port: int) -> None:
    spec = {"partition": {"prefillPercent": 60, "decodePercent": 80}, "slo": {"ttftMilliseconds": 500}}
    spec["partition"]["mode"] = "Manual"
    with serving(crd, namespace, "cols", "127.0.0.3", agent_port, **spec):
        header = crd.kubectl("get", "spd", "-n", namespace, "-o", "wide").stdout.splitlines()[0].split()
        assert header == [
            "NAME",
            "READY",
            "REASON",
            "REPLICAS",
            "SPLIT",
            "ENFORCED",
            "TTFT",
            "TPOT",
            "SLO",
            "AGE",
            "MODEL",
            "DESIRED",
            "MODE",
            "URL",
            "MESSAGE",
        ]
        assert until(lambda: row(crd, namespace, "cols")[1:7] == ["True", "Ready", "1", "60/80", "paced", "-/500ms"])
        assert row(crd, namespace, "cols", "-o", "wide")[9:13] == [
            "file:///models/m",
            "1",
            "Manual",
            f"http://cols.{namespace}.svc:8000",
        ]
        path = f"/apis/semipd.io/v1alpha1/namespaces/{namespace}/semipdservices/cols/scale"
        scale = crd.request("GET", path)
        assert scale["spec"]["replicas"] == 1 and scale["status"]["replicas"] == 1
        assert scale["status"]["selector"] == "semipd.io/service=cols"
        assert crd.kubectl("get", "semipd", "-n", namespace).stdout.count("cols") == 1, "the category"


def test_a_missing_gpu_shows_in_the_row(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("gpu", namespace, engine={"device": "cuda"}))
    assert until(lambda: crd.get("deployment", "gpu", namespace))
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    make_pod(crd, namespace, "gpu", "gpu-1", {"phase": "Pending", "conditions": [unscheduled]})
    assert until(lambda: row(crd, namespace, "gpu")[1:3] == ["False", "Unschedulable(nvidia.com/gpu)"])
    assert "nvidia.com/gpu" in condition(crd.get("spd", "gpu", namespace), "Available")["message"]


def test_a_failed_download_says_why(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("gated", namespace, model={"uri": "hf://org/gated"}))
    assert until(lambda: crd.get("deployment", "gated", namespace))
    said = json.dumps({"reason": "AuthRequired", "message": "the model is gated"})
    init = {"name": "model", "image": "e", "imageID": "", "ready": False, "restartCount": 1}
    init["state"] = {"terminated": {"exitCode": 3, "message": said}}
    make_pod(crd, namespace, "gated", "gated-1", {"phase": "Pending", "initContainerStatuses": [init]})
    assert until(lambda: row(crd, namespace, "gated")[1:3] == ["False", "AuthRequired"])
    failure = crd.get("spd", "gated", namespace)["status"]["model"]["lastFailure"]
    assert failure == {"pod": "gated-1", "reason": "AuthRequired", "message": "the model is gated", "exitCode": 3}


def test_an_object_of_someone_else_is_left_alone(operator: Operator, crd: Any, namespace: str) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken", "namespace": namespace},
        "spec": {"ports": [{"port": 1}], "selector": {"a": "b"}},
    }
    crd.apply(theirs)
    crd.apply(service("taken", namespace))
    assert until(lambda: row(crd, namespace, "taken")[1:3] == ["False", "NameConflict(Service/taken)"])
    assert crd.get("service", "taken", namespace)["spec"]["selector"] == {"a": "b"}
    assert crd.get("deployment", "taken", namespace) is None, "nothing is half made"
    assert not crd.get("spd", "taken", namespace)["status"].get("observedGeneration")
    crd.kubectl("delete", "service", "taken", "-n", namespace)
    assert until(lambda: crd.get("deployment", "taken", namespace), 40), "it is tried again"


def test_a_pod_template_that_the_server_refuses(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("typo", namespace, podTemplate={"spec": {"nodeSelecter": {"a": "b"}}}))
    assert until(lambda: condition(crd.get("spd", "typo", namespace), "SpecAccepted").get("status") == "False")
    rejected = condition(crd.get("spd", "typo", namespace), "SpecAccepted")
    assert rejected["reason"] == "InvalidPodTemplate" and "nodeSelecter" in rejected["message"]


def test_paused_leaves_objects_alone_and_status_goes_on(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    with serving(crd, namespace, "calm", "127.0.0.4", agent_port, partition={"prefillPercent": 50}) as agent:
        patch = {"spec": {"paused": True, "replicas": 3, "partition": {"prefillPercent": 20}}}
        crd.kubectl("patch", "spd", "calm", "-n", namespace, "--type=merge", "-p", json.dumps(patch))
        assert until(lambda: condition(crd.get("spd", "calm", namespace), "SpecAccepted")["reason"] == "Paused")
        pushed = len(agent.puts)
        agent.state = PartitionState.FAILED
        assert until(lambda: condition(crd.get("spd", "calm", namespace), "PartitionApplied")["status"] == "False")
        assert crd.get("deployment", "calm", namespace)["spec"]["replicas"] == 1
        assert len(agent.puts) == pushed
        live = crd.get("spd", "calm", namespace)
        assert live["status"]["observedGeneration"] < live["metadata"]["generation"]
        agent.state = PartitionState.APPLIED
        crd.kubectl("patch", "spd", "calm", "-n", namespace, "--type=merge", "-p", '{"spec": {"paused": false}}')
        assert until(lambda: crd.get("deployment", "calm", namespace)["spec"]["replicas"] == 3)
        assert until(lambda: agent.config.partition.split == Split(prefill_percent=20))


def test_pods_may_differ_in_auto(operator: Operator, crd: Any, namespace: str, agent_port: int) -> None:
    spec = {"slo": {"ttftMilliseconds": 500}, "replicas": 2}
    crd.apply(service("two", namespace, **spec))
    assert until(lambda: crd.get("deployment", "two", namespace))
    uid = crd.get("spd", "two", namespace)["metadata"]["uid"]
    token = service_token(KEY.encode(), namespace, "two", uid)
    agents = []
    for number, share in ((5, 60), (6, 80)):
        ip = f"127.0.0.{number}"
        agent = Agent(ip, agent_port, make_pod(crd, namespace, "two", f"two-{number}", ready(ip)), token)
        agent.split = Split(prefill_percent=share, decode_percent=40)
        agents.append(agent)
    try:
        assert until(lambda: row(crd, namespace, "two")[1:5] == ["True", "Ready", "2", "60-80/40"]), row(
            crd, namespace, "two"
        )
        partition = crd.get("spd", "two", namespace)["status"]["partition"]
        assert "applied" not in partition and partition["convergedReplicas"] == 2 and partition["mode"] == "Auto"
        assert [pod["applied"]["prefillPercent"] for pod in partition["pods"]] == [60, 80]
    finally:
        for agent in agents:
            agent.close()


def test_pod_monitor_comes_and_goes(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("seen", namespace, monitoring={"podMonitor": True}))
    assert until(lambda: crd.get("podmonitor", "seen", namespace))
    crd.kubectl(
        "patch", "spd", "seen", "-n", namespace, "--type=merge", "-p", '{"spec":{"monitoring":{"podMonitor":false}}}'
    )
    assert until(lambda: crd.get("podmonitor", "seen", namespace) is None)


def test_nothing_is_applied_to_a_service_that_is_being_deleted(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("last", namespace))
    assert until(lambda: crd.get("service", "last", namespace))
    hold = '{"metadata":{"finalizers":["test/hold"]}}'
    crd.kubectl("patch", "spd", "last", "-n", namespace, "--type=merge", "-p", hold)
    crd.kubectl("delete", "spd", "last", "-n", namespace, "--wait=false")
    crd.kubectl("delete", "service", "last", "-n", namespace)
    time.sleep(7)  # longer than a resync
    assert crd.get("service", "last", namespace) is None
    crd.kubectl("patch", "spd", "last", "-n", namespace, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    assert until(lambda: crd.get("spd", "last", namespace) is None), "nothing of ours holds it"


def test_a_quiet_service_costs_no_writes(operator: Operator, crd: Any, namespace: str, agent_port: int) -> None:
    with serving(crd, namespace, "quiet", "127.0.0.7", agent_port):
        time.sleep(3)
        versions = [crd.get(kind, name, namespace)["metadata"]["resourceVersion"] for kind, name in QUIET]
        time.sleep(8)  # a resync and some rounds of the agents
        assert [crd.get(k, n, namespace)["metadata"]["resourceVersion"] for k, n in QUIET] == versions


QUIET = (("spd", "quiet"), ("deployment", "quiet"), ("service", "quiet"), ("configmap", "quiet-agent"))


def test_status_is_owned_by_apply_and_a_strangers_edit_is_mended(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    with serving(crd, namespace, "own", "127.0.0.8", agent_port):
        managers = crd.kubectl("get", "spd", "own", "-n", namespace, "-o", "json", "--show-managed-fields").stdout
        ours = [m for m in json.loads(managers)["metadata"]["managedFields"] if m["manager"] == "semipd-operator"]
        assert [(m["operation"], m.get("subresource")) for m in ours] == [("Apply", "status")]
        crd.kubectl(
            "patch",
            "spd",
            "own",
            "-n",
            namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            '{"status":{"url":"x"}}',
        )
        assert until(lambda: crd.get("spd", "own", namespace)["status"]["url"].startswith("http://own."))


def test_the_operators_rights_end_where_they_should(operator: Operator, crd: Any, namespace: str) -> None:
    def may(*question: str) -> bool:
        user = "--as=system:serviceaccount:semipd-system:semipd-operator"
        return crd.kubectl("auth", "can-i", *question, "-n", namespace, user, ok=False).stdout.strip() == "yes"

    assert may("patch", "deployments.apps") and may("patch", "semipdservices.semipd.io", "--subresource=status")
    refused = (
        ("get", "secrets"),
        ("patch", "semipdservices.semipd.io"),
        ("create", "pods"),
        ("delete", "deployments.apps"),
    )
    assert [question for question in refused if may(*question)] == []


def test_a_new_operator_with_a_new_key_rolls_nothing_and_resumes(
    operator: Operator, crd: Any, namespace: str, agent_port: int, tmp_path: Path
) -> None:
    """Runs last: it replaces the operator."""
    with serving(crd, namespace, "kept", "127.0.0.9", agent_port) as agent:
        before = crd.get("deployment", "kept", namespace)
        assert operator.stop() == 0
        agent.state = PartitionState.FAILED
        key = "f" * 32
        ports = (free_port(), free_port())
        successor = Operator(crd, tmp_path, agent_port, ports, "--engine-image=engine:2", key=key)
        try:
            assert until(successor.healthy)

            def applied() -> dict[str, Any]:
                return condition(crd.get("spd", "kept", namespace), "PartitionApplied")

            assert until(lambda: applied()["reason"] == "AgentUnreachable", 25)
            assert "token" in applied()["message"]
            uid = crd.get("spd", "kept", namespace)["metadata"]["uid"]
            # What the kubelet does within a minute: the mounted ConfigMap has the new digest.
            text = crd.get("configmap", "kept-agent", namespace)["data"]["agent.json"]
            agent.token = service_token(key.encode(), namespace, "kept", uid)
            assert agent.digest() in AgentFile.model_validate_json(text).token_sha256
            agent.state = PartitionState.APPLIED
            assert until(lambda: applied()["status"] == "True")
            after = crd.get("deployment", "kept", namespace)
            assert after["spec"]["template"] == before["spec"]["template"], "no pod is rolled"
            crd.kubectl(
                "patch", "spd", "kept", "-n", namespace, "--type=merge", "-p", '{"spec":{"upgradePolicy":"Auto"}}'
            )

            def image() -> str:
                template = crd.get("deployment", "kept", namespace)["spec"]["template"]
                return template["spec"]["containers"][0]["image"]

            assert until(lambda: image() == "engine:2")
        finally:
            successor.stop()
