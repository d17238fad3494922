"""What the pods cannot say, the status says: cause, the words of whoever refuses, and what is shown where some serve.

The words are those of kube-apiserver 1.36, kube-scheduler and kubelet.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator_observed import NOT_READY, conditions, heard, messages, observed, pod, report
from tests.unit.operator_pods import stuck

from semipd_agent.contract import EnginePhase, EngineStatus
from semipd_operator.informer import Informer
from semipd_operator.reasons import REASONS, ConditionType
from semipd_operator.status import summarise
from semipd_operator.status.nodes import gpu_sharing
from semipd_operator.status.refusals import refusal, unexposed
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
    'pods "demo-7d" is forbidden: unable to validate against any security context constraint: [provider "any": no]': (
        "PodSecurityViolated"
    ),
    'pods "demo-7d" is forbidden: pod rejected: RuntimeClass "nvidia" not found': "RuntimeClassMissing",
    'pods "demo-7d" is forbidden: no PriorityClass with name urgent was found': "PriorityClassMissing",
    'pods "demo-7d" is forbidden: error looking up service account d/x: serviceaccount "x" not found': (
        "ServiceAccountMissing"
    ),
    'admission webhook "policy.example.org" denied the request: no': "AdmissionDenied",
    "pods demo is forbidden: ValidatingAdmissionPolicy 'a' with binding 'a' denied request: no": "AdmissionDenied",
    'failed calling webhook "policy.example.org": connection refused': "AdmissionWebhookFailed",
    "pods are tired": "PodRefused",
}
PENDING = {
    '0/2 nodes are available: persistentvolumeclaim "models" not found.': "ClaimMissing",
    "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.": "ClaimUnbound",
    "0/2 nodes are available: 2 node(s) had volume node affinity conflict.": "VolumeElsewhere",
    "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity.": "VolumeElsewhere",
    "0/2 nodes are available: 2 node(s) had no available volume zone.": "VolumeElsewhere",
    "0/2 nodes are available: 2 node(s) did not have enough free storage.": "ClaimUnbound",
    "0/2 nodes are available: 2 node(s) unavailable due to one or more pvc(s) bound to "
    "non-existent pv(s).": "ClaimLost",
    "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and "
    "ReadWriteOncePod access mode.": "ClaimInUse",
    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.": "Unschedulable",
}


def deployment(words: str) -> dict[str, Any]:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words}
    return {"status": {"conditions": [failure]}}


def told(cause: str, reason: str) -> str:
    """The whole line: a cause, and the one remedy of its reason."""
    [remedy] = [entry.remedy for entry in REASONS[ConditionType.AVAILABLE] if entry.reason == reason]
    assert remedy
    return f"{cause}{'' if cause.endswith('.') else '.'} Remedy: {remedy}"


@pytest.mark.parametrize("words", WORDS)
def test_a_pod_that_may_not_be_created_is_explained_by_the_api_servers_words(words: str) -> None:
    problem = refusal(deployment(words))
    none = summarise(observed({"replicas": 2}, pods=(), agents={}, refusal=problem))
    some = summarise(observed({"replicas": 2}, refusal=problem))
    assert conditions(none)["Available"] == conditions(none)["Ready"] == f"False {WORDS[words]}"
    assert conditions(some)["Available"] == "True PodsReady" and conditions(some)["Ready"] == f"False {WORDS[words]}"
    line = told(words, WORDS[words])
    assert messages(none) == {"Available": line, "Ready": line}
    assert messages(some) == {
        "Available": f"1 of 2 pods are ready: {words}",
        "Ready": f"1 of 2 pods are ready: {line}",
    }


def test_a_deployment_that_fails_nothing_is_no_problem() -> None:
    assert refusal(None) is None and refusal({"status": {"conditions": []}}) is None
    assert summarise(observed()).condition("Ready").status == "True"  # type: ignore[union-attr]


@pytest.mark.parametrize("words", PENDING)
def test_a_pod_that_finds_no_place_is_explained_by_the_schedulers_words(words: str) -> None:
    status = summarise(observed({"replicas": 2}, pods=(pod(), stuck(words))))
    line = told(f"p2: {words}", PENDING[words])
    assert conditions(status)["Ready"] == f"False {PENDING[words]}" and conditions(status)["Available"][:4] == "True"
    assert messages(status) == {
        "Available": f"1 of 2 pods are ready: p2: {words}",
        "Ready": f"1 of 2 pods are ready: {line}",
    }
    alone = summarise(observed(pods=(stuck(words),), agents={}))
    assert conditions(alone)["Available"] == conditions(alone)["Ready"] == f"False {PENDING[words]}"
    assert messages(alone) == {"Available": line, "Ready": line}


def test_the_missing_claim_stands_in_the_row() -> None:
    words = '0/2 nodes are available: persistentvolumeclaim "models" not found.'
    assert summarise(observed(pods=(stuck(words),), agents={})).reason == "ClaimMissing(models)"


@pytest.mark.parametrize(
    ("labels", "shared"),
    [
        ({}, ""),
        ({"nvidia.com/gpu.sharing-strategy": "none", "nvidia.com/gpu.replicas": "1"}, ""),
        ({"nvidia.com/gpu.sharing-strategy": "time-slicing"}, "nvidia.com/gpu.sharing-strategy=time-slicing"),
        ({"nvidia.com/gpu.replicas": "4"}, "nvidia.com/gpu.replicas=4"),
        ({"cloud.google.com/gke-gpu-sharing-strategy": "mps"}, "cloud.google.com/gke-gpu-sharing-strategy=mps"),
    ],
)
def test_a_node_that_shares_its_gpu_says_so_by_a_label(labels: dict[str, str], shared: str) -> None:
    assert gpu_sharing({"metadata": {"labels": labels}}) == shared
    applied = summarise(observed(pods=(pod(gpu_sharing=shared),))).condition("PartitionApplied")
    assert applied and applied.reason == ("GPUShared" if shared else "Applied")
    told = f"p1: node n gives its GPU to several pods ({shared}). Remedy: Use nodes that do not share GPUs "
    assert applied.message.startswith(told) if shared else not applied.message


def test_cause_and_remedy_fit_a_long_word_of_a_webhook() -> None:
    words = 'admission webhook "policy.example.org" denied the request: ' + "no " * 1000
    ready = summarise(observed(pods=(), agents={}, refusal=refusal(deployment(words)))).condition("Ready")
    assert ready and len(ready.message) <= 1024 and ready.message.endswith("exempt the namespace.")


def test_an_api_that_does_not_answer_is_named() -> None:
    engine = EngineStatus(
        state=EnginePhase.DEGRADED,
        ready=False,
        architecture="llama",
        reason="APINotResponding",
        message="the process api hangs",
    )
    status = summarise(observed(pods=(NOT_READY,), agents={"p1": heard(report(engine=engine))}))
    shown = conditions(status)
    assert shown["Available"] == shown["Ready"] == "False APINotResponding" and shown["ModelReady"] == "True Loaded"
    ready = status.condition("Ready")
    assert ready and ready.message.startswith(
        "p1: the process api hangs. Remedy: It is restarted by itself, after half "
    )


@pytest.mark.parametrize("state", [EnginePhase.DRAINING, EnginePhase.DEGRADED])
def test_an_engine_that_never_loaded_anything_has_nothing_loaded(state: EnginePhase) -> None:
    """One that drains, or is away, after it refused its folder."""
    engine = EngineStatus(state=state, ready=False)
    status = summarise(observed(pods=(NOT_READY,), agents={"p1": heard(report(engine=engine))}))
    assert conditions(status)["ModelReady"] == "False Loading" and status.model and status.model.state == "Loading"


def test_a_replica_set_that_may_not_be_created_is_explained_too() -> None:
    words = 'replicasets.apps "demo-5c8f" is forbidden: exceeded quota: team, requested: count/replicasets.apps=1'
    progress = {"type": "Progressing", "status": "False", "reason": "ReplicaSetCreateError", "message": words}
    problem = refusal({"status": {"conditions": [progress]}})
    assert problem and (problem.reason, problem.message) == ("QuotaExceeded", words)
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"}
    assert refusal({"status": {"conditions": [late]}}) is None


def test_a_service_whose_keys_were_emptied_admits_nobody_and_says_so() -> None:
    engine = EngineStatus(state=EnginePhase.DEGRADED, ready=True, reason="NoAPIKey", message="holds no key")
    status = summarise(observed(agents={"p1": heard(report(engine=engine))}))
    shown = conditions(status)
    assert (status.reason, shown["Ready"], shown["Available"]) == ("NoAPIKey", "False NoAPIKey", "True PodsReady")
    ready = status.condition("Ready")
    assert ready and ready.message.startswith("p1: holds no key. Remedy: Write a key into that Secret, ")


def test_a_service_that_never_had_a_key_names_the_secret_and_does_not_blame_the_model() -> None:
    engine = EngineStatus(state=EnginePhase.FAILED, ready=False, reason="NoAPIKey", message="holds no key")
    spec = {"service": {"apiKeySecretRef": {"name": "keys"}}}
    status = summarise(observed(spec, pods=(NOT_READY,), agents={"p1": heard(report(engine=engine))}))
    shown = conditions(status)
    assert (status.reason, shown["Available"]) == ("NoAPIKey(secret/keys)", "False NoAPIKey")
    assert shown["ModelReady"] == "Unknown Pending" and status.model and status.model.state == "Pending"
    ready = status.condition("Ready")
    assert ready and ready.message.startswith("p1: Secret keys, key api-keys: holds no key. Remedy: Write a key into ")


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
    assert ready and ready.message == (
        "HorizontalPodAutoscaler theirs scales the Deployment demo, which follows semipd.io/v1alpha1 SemiPDService "
        "demo. Remedy: Set its scaleTargetRef to the SemiPDService, or delete it."
    )
    assert one.autoscalers([ours]) == {key} and one.foreign_scaler(key) == ""


def test_a_service_that_was_paused_from_the_start_is_told_how_to_go_on() -> None:
    available = summarise(observed({"paused": True}, pods=(), agents={})).condition("Available")
    assert available and available.message == "no pod exists, and none is made. Remedy: Unset spec.paused."


def test_a_load_balancer_that_gives_no_address_is_told_though_the_service_is_ready() -> None:
    made: dict[str, Any] = {"metadata": {"name": "demo"}, "spec": {"type": "LoadBalancer"}}
    words = "no load balancer has given Service demo an address yet: kubectl describe service demo"
    assert unexposed(made) == words
    status = summarise(observed(unexposed=words))
    for kind in ("Ready", "Available"):
        shown = status.condition(kind)
        assert shown and shown.status == "True" and shown.message == f"1 of 1 pods are ready; {words}"
    given = {**made, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
    assert unexposed(None) == unexposed(given) == unexposed({**made, "spec": {"type": "NodePort"}}) == ""
