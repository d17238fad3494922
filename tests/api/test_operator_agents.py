"""The real operator and the pods' agents: what it pushes, what it reads, and a successor with another key.

Pods are made by hand, as there is no controller manager; a stand-in speaks the agent's real contract on their IPs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import (
    KEY,
    OPERATOR_NAMESPACE,
    Agent,
    Operator,
    condition,
    make_pod,
    ready,
    row,
    service,
    serving,
)

from e2e.lib.waiting import wait_until
from semipd_agent.contract import AgentFile, PartitionState, Split, service_token, token_digest

pytestmark = pytest.mark.api


def test_a_patch_reaches_the_agent_and_the_status(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    crd.apply(service("live", namespace, partition={"mode": "Manual", "prefillPercent": 60, "decodePercent": 80}))
    wait_until(lambda: crd.get("deployment", "live", namespace))
    uid = crd.get("spd", "live", namespace)["metadata"]["uid"]
    pod = make_pod(crd, namespace, "live", "live-1", ready("127.0.0.2"))
    agent = Agent("127.0.0.2", agent_port, pod, service_token(KEY.encode(), namespace, "live", uid))
    try:
        wait_until(
            lambda: row(crd, namespace, "live")[1:6] == ["True", "Ready", "1", "60/80", "paced"],
            describe=lambda: row(crd, namespace, "live"),
        )
        template = crd.get("deployment", "live", namespace)["spec"]["template"]

        patch = {"spec": {"partition": {"prefillPercent": 30}, "slo": {"ttftMilliseconds": 300}}}
        crd.kubectl("patch", "spd", "live", "-n", namespace, "--type=merge", "-p", json.dumps(patch))

        def applied() -> Any:
            return crd.get("spd", "live", namespace)["status"]["partition"].get("applied")

        wait_until(lambda: applied() == {"prefillPercent": 30, "decodePercent": 80}, describe=applied)
        assert agent.puts[-1].slo is not None and agent.puts[-1].slo.ttft_milliseconds == 300
        assert crd.get("deployment", "live", namespace)["spec"]["template"] == template, "nothing may roll"

        agent.state = PartitionState.FAILED
        wait_until(lambda: condition(crd.get("spd", "live", namespace), "PartitionApplied")["status"] == "False")
        assert condition(crd.get("spd", "live", namespace), "PartitionApplied")["reason"] == "WorkerNotResponding"
        agent.state = PartitionState.APPLIED
        wait_until(lambda: row(crd, namespace, "live")[1] == "True")
        events = crd.kubectl("get", "events", "-n", namespace, "-o", "json").stdout
        assert "PartitionApplyFailed" in {event["reason"] for event in json.loads(events)["items"]}
    finally:
        agent.close()
    wait_until(
        lambda: condition(crd.get("spd", "live", namespace), "PartitionApplied").get("reason") == "AgentUnreachable"
    )


def test_paused_leaves_objects_alone_and_status_goes_on(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    with serving(crd, namespace, "calm", "127.0.0.4", agent_port, partition={"prefillPercent": 50}) as agent:
        patch = {"spec": {"paused": True, "replicas": 3, "partition": {"prefillPercent": 20}}}
        crd.kubectl("patch", "spd", "calm", "-n", namespace, "--type=merge", "-p", json.dumps(patch))
        wait_until(lambda: condition(crd.get("spd", "calm", namespace), "SpecAccepted")["reason"] == "Paused")
        pushed = len(agent.puts)
        agent.state = PartitionState.FAILED
        wait_until(lambda: condition(crd.get("spd", "calm", namespace), "PartitionApplied")["status"] == "False")
        assert crd.get("deployment", "calm", namespace)["spec"]["replicas"] == 1
        assert len(agent.puts) == pushed
        live = crd.get("spd", "calm", namespace)
        assert live["status"]["observedGeneration"] < live["metadata"]["generation"]
        agent.state = PartitionState.APPLIED
        crd.kubectl("patch", "spd", "calm", "-n", namespace, "--type=merge", "-p", '{"spec": {"paused": false}}')
        wait_until(lambda: crd.get("deployment", "calm", namespace)["spec"]["replicas"] == 3)
        wait_until(lambda: agent.config.partition.split == Split(prefill_percent=20))


def test_a_key_is_replaced_under_way_and_nobody_is_out_of_sight(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    with serving(crd, namespace, "turned", "127.0.0.21", agent_port) as agent:
        uid = crd.get("spd", "turned", namespace)["metadata"]["uid"]

        def digests() -> tuple[str, ...]:
            text = crd.get("configmap", "turned-agent", namespace)["data"]["agent.json"]
            return AgentFile.model_validate_json(text).token_sha256

        def reason() -> str:
            return str(condition(crd.get("spd", "turned", namespace), "PartitionApplied")["reason"])

        old, key = operator.key.read_text(), "e" * 32
        operator.key.write_text(key)
        try:
            wait_until(lambda: len(digests()) == 2)
            new = service_token(key.encode(), namespace, "turned", uid)
            assert digests() == (token_digest(new), agent.digest()), "the pod is told of the new one beside the old"
            for _ in range(30):  # the kubelet takes its time: the pod knows the old one only, and is heard
                assert reason() == "Applied"
                time.sleep(0.2)
            agent.token = new
            crd.kubectl(
                "patch",
                "spd",
                "turned",
                "-n",
                namespace,
                "--type=merge",
                "-p",
                '{"spec":{"partition":{"prefillPercent":30}}}',
            )
            wait_until(lambda: agent.config.partition.split == Split(prefill_percent=30))
            wait_until(lambda: reason() == "Applied")
        finally:
            operator.key.write_text(old)


def test_two_operators_with_different_keys_do_not_fight(
    operator: Operator, crd: Any, namespace: str, agent_port: int, tmp_path: Path
) -> None:
    """The first one here has no Lease, as the one of a developer. The other is an installed one: it cannot know that
    the first one lives, and takes over; the first one sees it, and its Lease, and yields."""
    crd.apply(service("shared", namespace))
    config_map = wait_until(lambda: crd.get("configmap", "shared-agent", namespace))
    name = config_map["metadata"]["annotations"]["semipd.io/operator"]
    installed = f"{OPERATOR_NAMESPACE}/semipd-operator"

    def holder() -> str:
        found = crd.get("configmap", "shared-agent", namespace)
        return str(found["metadata"]["annotations"]["semipd.io/operator"])

    def changed(percent: int) -> None:
        """The status follows a change of the specification, whoever writes it. Who yields says nothing for 60 s."""
        patch = json.dumps({"spec": {"partition": {"prefillPercent": percent}}})
        crd.kubectl("patch", "spd", "shared", "-n", namespace, "--type=merge", "-p", patch)
        wait_until(lambda: observed() == generation(), 30, lambda: (percent, observed(), holder()))

    def observed() -> int:
        return int((crd.get("spd", "shared", namespace).get("status") or {}).get("observedGeneration", 0))

    def generation() -> int:
        return int(crd.get("spd", "shared", namespace)["metadata"]["generation"])

    yields = f"{namespace}/shared: operator {name} looks after this service"
    leaves = f"{namespace}/shared: operator {installed} looks after this service; operator {name} leaves it alone"
    percent = itertools.count(10)
    with contextlib.ExitStack() as stack:
        second = Operator(crd, tmp_path, agent_port, f"--lease={installed}", key="f" * 32)
        stack.push(second)
        while not second.ready():  # the specification changes while one takes over from the other
            changed(next(percent))
        wait_until(lambda: holder() == installed, describe=holder)
        wait_until(lambda: leaves in operator.log.read_text(), describe=lambda: operator.log.read_text()[-2000:])
        changed(next(percent))
        version = crd.get("configmap", "shared-agent", namespace)["metadata"]["resourceVersion"]
        time.sleep(8)  # longer than a resync of either
        assert crd.get("configmap", "shared-agent", namespace)["metadata"]["resourceVersion"] == version, "peace"
        assert holder() == installed and yields not in second.log.read_text(), "the installed one serves it"
        told = crd.kubectl("get", "events", "-n", namespace, "--field-selector=reason=OperatorConflict").stdout
        assert f"operator {name} leaves it alone" in told and installed in told
        assert told.count("OperatorConflict") == 1
    crd.kubectl("delete", "lease", "semipd-operator", "-n", OPERATOR_NAMESPACE)
    wait_until(lambda: holder() == name, describe="the other one is gone")
    changed(next(percent))


def test_a_new_operator_with_a_new_key_rolls_nothing_and_resumes(
    operator: Operator, crd: Any, namespace: str, agent_port: int, tmp_path: Path
) -> None:
    """Runs last: it replaces the operator."""
    with serving(crd, namespace, "kept", "127.0.0.9", agent_port) as agent:
        before = crd.get("deployment", "kept", namespace)
        assert operator.stop() == 0
        agent.state = PartitionState.FAILED
        key = "f" * 32
        with Operator(crd, tmp_path, agent_port, "--engine-image=engine:2", key=key):

            def applied() -> dict[str, Any]:
                return condition(crd.get("spd", "kept", namespace), "PartitionApplied")

            wait_until(lambda: "token" in applied()["message"], describe=applied)
            assert applied()["reason"] == "AgentUnreachable"
            uid = crd.get("spd", "kept", namespace)["metadata"]["uid"]
            # What the kubelet does within a minute: the mounted ConfigMap has the new digest.
            text = crd.get("configmap", "kept-agent", namespace)["data"]["agent.json"]
            agent.token = service_token(key.encode(), namespace, "kept", uid)
            assert agent.digest() in AgentFile.model_validate_json(text).token_sha256
            agent.state = PartitionState.APPLIED
            wait_until(lambda: applied()["status"] == "True")
            after = crd.get("deployment", "kept", namespace)
            assert after["spec"]["template"] == before["spec"]["template"], "no pod is rolled"
            crd.kubectl(
                "patch", "spd", "kept", "-n", namespace, "--type=merge", "-p", '{"spec":{"upgradePolicy":"Auto"}}'
            )

            def image() -> str:
                template = crd.get("deployment", "kept", namespace)["spec"]["template"]
                return template["spec"]["containers"][0]["image"]

            wait_until(lambda: image() == "engine:2")
