"""What the pods cannot say, the status says: cause, the words of whoever refuses, and what is shown where some serve.

The words are those of kube-apiserver 1.36, kube-scheduler and kubelet.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator_observed import NOT_READY, ago, conditions, heard, observed, pod, report

from semipd_agent.contract import EnginePhase, EngineStatus
from semipd_operator.informer import Informer
from semipd_operator.reasons import REASONS, ConditionType
from semipd_operator.status import PodView, summarise
from semipd_operator.status.pods import pod_view, refusal
from semipd_operator.workqueue import Key

pytestmark = pytest.mark.unit

QUOTA = 'pods "demo-7d" is forbidden: exceeded quota: team, requested: pods=1, used: pods=2, limited: pods=2'
WORDS = {
    QUOTA: "QuotaExceeded",
    'pods "demo-7d" is forbidden: failed quota: team: must specify limits.cpu for: engine': "QuotaExceeded",
    'pods "demo-7d" is forbidden: maximum memory usage per Container is 1Gi, but limit is 3Gi': "LimitRangeViolated",
    'pods "demo-7d" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes (volume "x")': (
        "PodSecurityViolated"
    ),
    'pods "demo-7d" is forbidden: pod rejected: RuntimeClass "nvidia" not found': "RuntimeClassMissing",
    'admission webhook "policy.example.org" denied the request: no': "PodRefused",
}
PENDING = {
    '0/2 nodes are available: persistentvolumeclaim "models" not found.': "ClaimMissing",
    "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.": "ClaimUnbound",
    "0/2 nodes are available: 2 node(s) had volume node affinity conflict.": "ClaimInUse",
    "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and "
    "ReadWriteOncePod access mode.": "ClaimInUse",
    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.": "Unschedulable",
}


def deployment(words: str) -> dict[str, Any]:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words}
    return {"status": {"conditions": [failure]}}


def stuck(words: str = "", **status: Any) -> PodView:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    meta = {"name": "p2", "uid": "p2", "namespace": "d", "labels": {"semipd.io/template-hash": "h"}}
    return pod_view({"metadata": meta, "status": status or {"conditions": [unscheduled]}})


def listed(reason: str) -> bool:
    remedies = [entry.remedy for entry in REASONS[ConditionType.AVAILABLE] if entry.reason == reason]
    return len(remedies) == 1 and bool(remedies[0])


@pytest.mark.parametrize("words", WORDS)
def test_a_pod_that_may_not_be_created_is_explained_by_the_api_servers_words(words: str) -> None:
    problem = refusal(deployment(words))
    none = summarise(observed({"replicas": 2}, pods=(), agents={}, refusal=problem))
    some = summarise(observed({"replicas": 2}, refusal=problem))
    assert conditions(none)["Available"] == conditions(none)["Ready"] == f"False {WORDS[words]}"
    assert conditions(some)["Available"] == "True PodsReady" and conditions(some)["Ready"] == f"False {WORDS[words]}"
    for status in (none, some):
        for kind in ("Available", "Ready"):
            shown = status.condition(kind)
            assert shown and words in shown.message
    assert listed(WORDS[words])


def test_a_deployment_that_fails_nothing_is_no_problem() -> None:
    assert refusal(None) is None and refusal({"status": {"conditions": []}}) is None
    assert summarise(observed()).condition("Ready").status == "True"  # type: ignore[union-attr]


@pytest.mark.parametrize("words", PENDING)
def test_a_pod_that_finds_no_place_is_explained_by_the_schedulers_words(words: str) -> None:
    status = summarise(observed({"replicas": 2}, pods=(pod(), stuck(words))))
    ready, available = status.condition("Ready"), status.condition("Available")
    assert ready and available and ready.reason == PENDING[words] and listed(PENDING[words])
    assert words in ready.message and words in available.message and available.status == "True"
    assert ready.message.startswith("1 of 2 pods are ready: p2: ")
    assert conditions(summarise(observed(pods=(stuck(words),), agents={})))["Available"] == f"False {PENDING[words]}"


def test_the_missing_claim_stands_in_the_row() -> None:
    words = '0/2 nodes are available: persistentvolumeclaim "models" not found.'
    assert summarise(observed(pods=(stuck(words),), agents={})).reason == "ClaimMissing(models)"


def test_a_pod_whose_volumes_do_not_come_is_told_after_half_a_minute() -> None:
    """A ReadWriteOnce claim on another node, a missing runtime: the kubelet tells it in events alone."""
    engine = {"name": "engine", "ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}

    def reason(seconds: float) -> str:
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(seconds).isoformat()}
        one = stuck(conditions=[scheduled], containerStatuses=[engine])
        return conditions(summarise(observed(pods=(one,), agents={})))["Available"]

    assert reason(29) == "False PodsNotReady" and reason(31) == "False VolumeNotMounted"


def test_a_container_killed_for_memory_is_told_with_its_limit_also_while_it_loads_again() -> None:
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    engine = {"name": "engine", "ready": False, "restartCount": 1, "state": {"running": {}}, "lastState": killed}
    obj = {
        "metadata": {"name": "p1", "uid": "p1", "labels": {"semipd.io/template-hash": "h"}},
        "spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "600Mi"}}}]},
        "status": {"containerStatuses": [engine]},
    }
    loading = EngineStatus(state=EnginePhase.LOADING, ready=False)
    status = summarise(observed(pods=(pod_view(obj),), agents={"p1": heard(report(engine=loading))}))
    assert conditions(status)["ModelReady"] == conditions(status)["Available"] == "False OutOfMemory"
    ready = status.condition("Ready")
    assert ready and ready.message == "p1: container engine was killed at its memory limit of 600Mi"
    engine["ready"] = True
    assert pod_view(obj).problem is None, "it was overcome"


def test_an_api_that_does_not_answer_is_named() -> None:
    engine = EngineStatus(
        state=EnginePhase.DEGRADED, ready=False, reason="APINotResponding", message="the process api hangs"
    )
    status = summarise(observed(pods=(NOT_READY,), agents={"p1": heard(report(engine=engine))}))
    shown = conditions(status)
    assert shown["Available"] == shown["Ready"] == "False APINotResponding" and shown["ModelReady"] == "True Loaded"
    ready = status.condition("Ready")
    assert ready and ready.message == "p1: the process api hangs"


def hpa(name: str, kind: str, target: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "n", "uid": name, "resourceVersion": "3"}
    return {"metadata": meta, "spec": {"scaleTargetRef": {"kind": kind, "name": target}}}


def test_a_foreign_autoscaler_of_the_deployment_is_named() -> None:
    one, key = Informer(), Key("n", "demo")
    meta = {
        "name": "demo",
        "namespace": "n",
        "uid": "d",
        "resourceVersion": "1",
        "labels": {"semipd.io/service": "demo"},
    }
    one.told("Deployment", {"metadata": meta})
    ours = hpa("demo", "SemiPDService", "demo")
    assert one.autoscalers([ours, hpa("web", "Deployment", "web")]) == {Key("n", "web")}
    assert one.foreign_scaler(key) == ""
    assert one.autoscalers([ours, hpa("theirs", "Deployment", "demo")]) == {key, Key("n", "web")}
    assert one.foreign_scaler(key) == "theirs"
    assert one.autoscalers([hpa("theirs", "Deployment", "demo")]) == set(), "once"

    status = summarise(observed(foreign_scaler="theirs"))
    shown = conditions(status)
    assert shown["Ready"] == shown["ScalingReady"] == "False ConflictingAutoscaler"
    assert shown["Available"] == "True PodsReady" and status.reason == "ConflictingAutoscaler(theirs)"
    ready = status.condition("Ready")
    assert ready and "set its scaleTargetRef to semipd.io/v1alpha1 SemiPDService demo, or delete it" in ready.message
    assert one.autoscalers([ours]) == {key} and one.foreign_scaler(key) == ""
