"""The real operator's status on the real API server: columns, reasons, who owns it, and that quiet costs nothing.

Pods are made by hand, as there is no controller manager; a stand-in speaks the agent's real contract on their IPs.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.api.harness import (
    KEY,
    Agent,
    Operator,
    condition,
    make_pod,
    ready,
    row,
    service,
    serving,
)
from tests.unit.agent_plant import Pod, Speed, poisson

from e2e.lib.waiting import wait_until
from semipd_agent import report
from semipd_agent.contract import (
    SLO,
    AgentConfig,
    Decision,
    Identity,
    Mode,
    PartitionConfig,
    PartitionState,
    Split,
    StatusReport,
    service_token,
)
from semipd_agent.engine_report import LauncherState

pytestmark = pytest.mark.api


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
        wait_until(lambda: row(crd, namespace, "cols")[1:7] == ["True", "Ready", "1", "60/80", "paced", "-/500ms"])
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
    wait_until(lambda: crd.get("deployment", "gpu", namespace))
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    make_pod(crd, namespace, "gpu", "gpu-1", {"phase": "Pending", "conditions": [unscheduled]})
    wait_until(lambda: row(crd, namespace, "gpu")[1:3] == ["False", "Unschedulable(nvidia.com/gpu)"])
    assert "nvidia.com/gpu" in condition(crd.get("spd", "gpu", namespace), "Available")["message"]


def test_a_failed_download_says_why(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("gated", namespace, model={"uri": "hf://org/gated"}))
    wait_until(lambda: crd.get("deployment", "gated", namespace))
    said = json.dumps({"reason": "AuthRequired", "message": "the model is gated"})
    init = {"name": "model", "image": "e", "imageID": "", "ready": False, "restartCount": 1}
    init["state"] = {"terminated": {"exitCode": 3, "message": said}}
    make_pod(crd, namespace, "gated", "gated-1", {"phase": "Pending", "initContainerStatuses": [init]})
    wait_until(lambda: row(crd, namespace, "gated")[1:3] == ["False", "AuthRequired"])
    failure = crd.get("spd", "gated", namespace)["status"]["model"]["lastFailure"]
    assert failure == {"pod": "gated-1", "reason": "AuthRequired", "message": "the model is gated", "exitCode": 3}


def test_pods_may_differ_in_auto(operator: Operator, crd: Any, namespace: str, agent_port: int) -> None:
    spec = {"slo": {"ttftMilliseconds": 500}, "replicas": 2}
    crd.apply(service("two", namespace, **spec))
    wait_until(lambda: crd.get("deployment", "two", namespace))
    uid = crd.get("spd", "two", namespace)["metadata"]["uid"]
    token = service_token(KEY.encode(), namespace, "two", uid)
    agents = []
    for number, share in ((5, 60), (6, 80)):
        ip = f"127.0.0.{number}"
        agent = Agent(ip, agent_port, make_pod(crd, namespace, "two", f"two-{number}", ready(ip)), token)
        agent.split = Split(prefill_percent=share, decode_percent=40)
        agents.append(agent)
    try:
        wait_until(
            lambda: row(crd, namespace, "two")[1:5] == ["True", "Ready", "2", "60-80/40"],
            describe=lambda: row(crd, namespace, "two"),
        )
        partition = crd.get("spd", "two", namespace)["status"]["partition"]
        assert "applied" not in partition and partition["convergedReplicas"] == 2 and partition["mode"] == "Auto"
        assert [pod["applied"]["prefillPercent"] for pod in partition["pods"]] == [60, 80]
    finally:
        for agent in agents:
            agent.close()


QUIET = (("spd", "quiet"), ("deployment", "quiet"), ("service", "quiet"), ("configmap", "quiet-agent"))


def test_a_quiet_service_costs_no_writes(operator: Operator, crd: Any, namespace: str, agent_port: int) -> None:
    with serving(crd, namespace, "quiet", "127.0.0.7", agent_port):

        def versions() -> list[str]:
            return [crd.get(kind, name, namespace)["metadata"]["resourceVersion"] for kind, name in QUIET]

        def nothing_for_a_while() -> bool:
            before = versions()
            time.sleep(8)  # a resync and some rounds of the agents
            return versions() == before

        wait_until(nothing_for_a_while, describe=versions)  # what the beginning still writes comes to an end


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
        wait_until(lambda: crd.get("spd", "own", namespace)["status"]["url"].startswith("http://own."))


def steered(rate: float) -> StatusReport:
    """What an agent reports after 110 s of prompts of 2,000 tokens: the real controller, in virtual time."""
    slo = SLO(ttft_milliseconds=750, tpot_milliseconds=30)
    config = AgentConfig(generation=1, slo=slo, partition=PartitionConfig(mode=Mode.AUTO))
    pod = Pod(config, poisson(rate, 110, 2000, 60, 1), Speed(prompt_token=5e-5, step=0.006, row=0.0003))
    for second in range(1, 111):
        pod.tick(float(second))
    clock = pod.clock
    return report.build(
        pod.controller, LauncherState(), Identity(), ready=True, now=clock.monotonic(), wall=clock.wall()
    )


def test_describe_alone_tells_what_moved_and_why_and_whether_another_pod_helps(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    spec = {"slo": {"ttftMilliseconds": 750, "tpotMilliseconds": 30}, "partition": {"mode": "Auto"}}
    with serving(crd, namespace, "told", "127.0.0.5", agent_port, **spec) as agent:

        def described() -> str:
            lines = crd.kubectl("describe", "spd", "told", "-n", namespace).stdout.splitlines()
            return "\n".join(" ".join(line.split()) for line in lines)

        def says(*wanted: str) -> Any:
            return wait_until(lambda: all(re.search(one, described()) for one in wanted), describe=described)

        agent.told = steered(2.5)
        assert agent.told.decisions and agent.told.slo and agent.told.slo.feasible
        says(
            r"\nFrom:\nDecode Percent: 100\nPrefill Percent: 100\n",  # what moved
            r"\nReason: BetterSplitPredicted\n",  # why
            # was the prediction right?
            r"\nMessage: \d+\.\d % of the requests expected within both targets instead of \d+\.\d %; "
            r"\d+\.\d % of \d+ were in its first 60 s\n",
            r"\nOutcome: Applied\n",
            r"\nReason: Feasible\nStatus: True\nType: SLOFeasible\n",  # can the target be met?
            r"\nRecommended Replicas: 1\n",  # would another pod help?
            r"\nUtilization Percent: \d+\n",
            r"PartitionChanged .* told-1: 100/100 -> \d+/\d+: BetterSplitPredicted \(.*expected within both targets",
        )
        agent.told = steered(9.0)
        says(
            r"\nMessage: TTFTBound: no split in reach keeps the TTFT target under this load: another pod helps\. "
            r"Remedy: Add replicas, relax the targets or widen the bounds\.\n",
            r"\nRecommended Replicas: [23]\n",
            r"\nUtilization Percent: [12]\d\d\n",
        )


def test_a_manual_change_of_the_split_is_one_event(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    """However often its decision is reported, and for whatever the status is written meanwhile."""

    def manual(prefill: int, decode: int) -> dict[str, Any]:
        return {"partition": {"mode": "Manual", "prefillPercent": prefill, "decodePercent": decode}}

    def told() -> list[tuple[int, str]]:
        listed = crd.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        return [(one["count"], one["message"]) for one in listed if one["reason"] == "PartitionChanged"]

    with serving(crd, namespace, "moves", "127.0.0.9", agent_port, **manual(100, 100)) as agent:
        splits = [(60, 80), (80, 60), (50, 50)]
        for number, (prefill, decode) in enumerate(splits, 1):
            before = agent.config.partition.split
            change = json.dumps({"spec": manual(prefill, decode)})
            crd.kubectl("patch", "spd", "moves", "-n", namespace, "--type=merge", "-p", change)
            split = Split(prefill_percent=prefill, decode_percent=decode)
            wait_until(lambda split=split: agent.config.partition.split == split)  # type: ignore[misc]
            decision = Decision.model_validate(
                {"time": datetime.now(UTC), "from": before, "to": split, "reason": "ManualChange", "outcome": "Applied"}
            )
            earlier = agent.told.decisions if agent.told else ()
            agent.told = agent.report().model_copy(update={"decisions": (decision, *earlier)})
            wait_until(lambda number=number: len(told()) >= number, describe=told)  # type: ignore[misc]
            shown = f"{prefill}/{decode}"
            wait_until(lambda shown=shown: row(crd, namespace, "moves")[1:5] == ["True", "Ready", "1", shown])  # type: ignore[misc]
        # Another word in the status, and another operator's first look at it, tell nothing twice.
        agent.state = PartitionState.FAILED
        wait_until(lambda: condition(crd.get("spd", "moves", namespace), "PartitionApplied")["status"] == "False")
        agent.state = PartitionState.APPLIED
        wait_until(lambda: row(crd, namespace, "moves")[1] == "True")
        assert [count for count, _ in told()] == [1, 1, 1]
        whence = ["100/100", *(f"{prefill}/{decode}" for prefill, decode in splits)]
        pairs = itertools.pairwise(whence)
        assert sorted(words for _, words in told()) == sorted(
            f"moves-1: {before} -> {after}: ManualChange" for before, after in pairs
        )


def test_a_status_that_a_policy_denies_is_told_by_one_event(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("mute", namespace))
    wait_until(lambda: condition(crd.get("spd", "mute", namespace), "Ready"))
    rule = {"apiGroups": ["semipd.io"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/status"]}
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    policy: dict[str, Any] = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "no-status"},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "false", "message": "no status here"}],
        },
    }
    bound = {"policyName": "no-status", "validationActions": ["Deny"], "matchResources": here}
    crd.apply(policy)
    crd.apply({**policy, "kind": "ValidatingAdmissionPolicyBinding", "spec": bound})

    def events() -> list[Any]:
        listed = crd.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        return [one for one in listed if one["reason"] == "StatusRefused"]

    try:
        scaled = 1

        def told() -> list[Any]:
            """A policy takes a moment until it is in force; each change is a status to write."""
            nonlocal scaled
            scaled += 1
            crd.kubectl("scale", "spd/mute", "-n", namespace, f"--replicas={scaled % 9 + 1}")
            return events()

        found = wait_until(told)
        assert "no status here" in found[0]["message"] and "Remedy: have the policy" in found[0]["message"]
        crd.kubectl("scale", "spd/mute", "-n", namespace, "--replicas=0")
    finally:
        crd.kubectl("delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "no-status")
    wait_until(lambda: row(crd, namespace, "mute")[2] == "ScaledToZero", describe="it is tried again")
    assert len(events()) == 1
