"""What the pods cannot say, the status says: cause, the words of whoever refuses, and what is shown where some serve.

The words are those of kube-apiserver 1.36, kube-scheduler and kubelet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.operator_observed import NOT_READY, ago, conditions, heard, observed, pod, report

from semipd_agent.contract import EnginePhase, EngineStatus
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.informer import Informer
from semipd_operator.reasons import REASONS, ConditionType
from semipd_operator.status import PodView, summarise
from semipd_operator.status.nodes import complaint, gpu_sharing
from semipd_operator.status.pods import pod_view
from semipd_operator.status.refusals import refusal
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


def stuck(words: str = "", **status: Any) -> PodView:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    meta = {"name": "p2", "uid": "p2", "namespace": "d", "labels": {"semipd.io/template-hash": "h"}}
    return pod_view({"metadata": meta, "status": status or {"conditions": [unscheduled]}})


def told(cause: str, reason: str) -> str:
    """The whole line: a cause, and the one remedy of its reason."""
    [remedy] = [entry.remedy for entry in REASONS[ConditionType.AVAILABLE] if entry.reason == reason]
    assert remedy
    return f"{cause}{'' if cause.endswith('.') else '.'} Remedy: {remedy}"


def messages(status: SemiPDServiceStatus) -> dict[str, str]:
    return {one.type: one.message for one in status.conditions if one.type in ("Available", "Ready")}


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


CREATING = {"name": "engine", "ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}


def being_made(seconds: float, *, sandbox: bool = False) -> PodView:
    """A pod that was given to a node so long ago, and has no container."""
    since = ago(seconds).isoformat()
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": since}
    made = {"type": "PodReadyToStartContainers", "status": str(sandbox)}
    return replace(stuck(conditions=[scheduled, made], containerStatuses=[CREATING]), node="n1")


def test_a_pod_whose_volumes_do_not_come_is_told_after_half_a_minute_without_a_word() -> None:
    def reason(seconds: float) -> str:
        return conditions(summarise(observed(pods=(being_made(seconds),), agents={})))["Available"]

    assert reason(29) == "False PodsNotReady" and reason(31) == "False VolumeNotMounted"


def test_a_pod_whose_volumes_do_not_come_without_a_word_names_its_claims() -> None:
    """The kubelet has no word for a storage driver that the node lacks."""
    status = summarise(observed(pods=(replace(being_made(31), claims="models"),), agents={}))
    assert "its volumes (claim models), network or runtime are not there" in messages(status)["Ready"]
    assert "kubectl describe pvc" in messages(status)["Ready"]


def test_a_pod_whose_image_comes_slowly_has_its_volumes() -> None:
    """The kubelet says ContainerCreating all the while; five gigabytes take minutes."""
    status = summarise(observed(pods=(being_made(600, sandbox=True),), agents={}))
    available = status.condition("Available")
    assert available and (available.reason, available.message.split(": ", 1)[1]) == (
        "PodsNotReady",
        "p2: node n1 pulls the image of container engine",
    )


def warning(reason: str, message: str, at: str = "2026-01-02T03:04:05Z") -> dict[str, Any]:
    return {"reason": reason, "message": message, "lastTimestamp": at, "type": "Warning"}


SECRET = 'MountVolume.SetUp failed for volume "api-keys" : secret "keys" not found'
KEY_OF_IT = 'MountVolume.SetUp failed for volume "api-keys" : references non-existent secret key: token'
ATTACHED = 'Multi-Attach error for volume "pv-1" Volume is already used by pod(s) demo-1'
SANDBOX = 'Failed to create pod sandbox: rpc error: no runtime for "nvidia" is configured'

NETWORK = 'Failed to create pod sandbox: failed to setup network for sandbox: plugin type="calico" failed (add): no IP'
DENIED = "MountVolume.SetUp failed: mount failed: exit status 32 Output: mount.nfs: access denied by server"


KEYED = {
    "spec": {"volumes": [{"name": "config", "configMap": {}}, {"name": "api-keys", "secret": {"secretName": "keys"}}]}
}


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (warning("FailedMount", SECRET), "VolumeNotMounted(secret/keys)"),
        (warning("FailedMount", KEY_OF_IT), "VolumeNotMounted(secret/keys key token)"),
        (warning("FailedAttachVolume", ATTACHED), "ClaimInUse"),
        (warning("FailedCreatePodSandBox", SANDBOX), "ContainerNotStarted"),
        (warning("FailedCreatePodSandBox", NETWORK), "ContainerNotStarted"),
        (warning("FailedMount", DENIED), "VolumeNotMounted"),
    ],
)
def test_the_kubelets_words_are_shown(event: dict[str, Any], shown: str) -> None:
    others = [
        warning("FailedScheduling", "0/1 nodes", "2026-01-02T03:05:00Z"),
        warning("FailedMount", "Unable to attach or mount volumes: timed out", "2026-01-02T03:06:00Z"),
        warning("FailedMount", "an older word", "2026-01-02T03:00:00Z"),
    ]
    pod = replace(being_made(12), complaint=complaint([*others, event], KEYED))
    status = summarise(observed(pods=(pod,), agents={}))
    ready = status.condition("Ready")
    assert status.reason == shown and ready and ready.message.startswith(f"p2: {event['message']}. Remedy: ")
    own = {
        SANDBOX: "Correct runtimeClassName",
        NETWORK: "Mend the node's network plugin",
        DENIED: "Mend what mount says",
    }
    assert own.get(event["message"], "") in ready.message
    assert complaint([warning("BackOff", "Back-off")], {}) is None


CLAIMED = {"volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}]}


@pytest.mark.parametrize(
    ("spec", "nominated", "shown", "words"),
    [
        ({"schedulerName": "mine"}, "", "Unschedulable", "names none that runs (mine). Remedy: Correct schedulerName"),
        (CLAIMED, "n2", "ClaimUnbound(models)", "chosen node n2, and waits for a volume of claim models: no provis"),
        (CLAIMED, "", "ClaimUnbound(models)", "it may wait for a volume of claim models"),
        (
            {"resourceClaims": [{"name": "gpu", "resourceClaimName": "gone"}]},
            "",
            "Unschedulable(resourceClaim)",
            "gone",
        ),
        ({"schedulerName": "default-scheduler"}, "", "Unschedulable", "looked at it. Remedy: Have the cluster's admin"),
    ],
)
def test_a_pod_of_which_no_scheduler_says_anything_is_told(
    spec: dict[str, Any], nominated: str, shown: str, words: str
) -> None:
    def told(seconds: float) -> SemiPDServiceStatus:
        meta = {"name": "p", "uid": "p", "creationTimestamp": ago(seconds).isoformat()}
        status = {"phase": "Pending", **({"nominatedNodeName": nominated} if nominated else {})}
        return summarise(observed(pods=(pod_view({"metadata": meta, "spec": spec, "status": status}),), agents={}))

    assert told(29).reason == "PodsNotReady"
    assert told(31).reason == shown and words in messages(told(31))["Ready"]


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
    assert ready and ready.message == (
        "p1: container engine was killed at its memory limit of 600Mi. Remedy: Raise "
        "spec.engine.resources.limits.memory (unset, the limit is of a LimitRange of the namespace), or lower "
        "spec.engine.kvCacheMemory or maxModelLen."
    )
    engine["ready"] = True
    assert pod_view(obj).problem is None, "it was overcome"


@pytest.mark.parametrize("now", [{"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}], ids=["runs", "waits"])
@pytest.mark.parametrize("probe", [{}, {"readinessProbe": {"exec": {"command": ["ok"]}}}], ids=["no probe", "probe"])
@pytest.mark.parametrize("list_", ["containerStatuses", "initContainerStatuses"])
def test_another_container_killed_for_memory_is_told_until_the_pod_serves_and_is_none_of_the_models(
    list_: str, probe: dict[str, Any], now: dict[str, Any]
) -> None:
    """Without a probe it is ready as soon as it runs: the cause came and went with each of its lives."""
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    ready = "running" in now and not probe
    one = {"name": "proxy", "ready": ready, "restartCount": 2, "state": now, "lastState": killed}
    engine = {"name": "engine", "ready": False, "restartCount": 0, "state": {"running": {}}}
    limited = {"name": "proxy", "resources": {"limits": {"memory": "64Mi"}}, **probe}
    obj = {
        "metadata": {"name": "p1", "uid": "p1", "labels": {"semipd.io/template-hash": "h"}},
        "spec": {"containers": [{"name": "engine"}, limited]},
        "status": {"containerStatuses": [engine], list_: [one, *([engine] if list_ == "containerStatuses" else [])]},
    }
    loading = EngineStatus(state=EnginePhase.LOADING, ready=False)
    status = summarise(observed(pods=(pod_view(obj),), agents={"p1": heard(report(engine=loading))}))
    assert conditions(status)["ModelReady"] == "False Loading"
    assert conditions(status)["Ready"] == "False OutOfMemory" and status.reason == "OutOfMemory(proxy)"
    ready_ = status.condition("Ready")
    assert ready_ and ready_.message == (
        "p1: container proxy was killed at its memory limit of 64Mi. Remedy: Raise resources.limits.memory of "
        "container proxy in spec.podTemplate, or where a webhook adds it."
    )


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


@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
def test_a_sidecar_that_is_never_ready_is_named_once_the_engine_is(where: str) -> None:
    """One that is an init container, too (restartPolicy Always)."""
    engine = {"name": "engine", "ready": False, "state": {"running": {}}}
    sidecar = {"name": "proxy", "ready": False, "state": {"running": {"startedAt": ago(31).isoformat()}}}
    unready = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
    status: dict[str, Any] = {"conditions": [unready], "containerStatuses": [engine]}
    status[where] = [*status.get(where, []), sidecar]
    meta = {"name": "p1", "uid": "p1", "labels": {"pod-template-hash": "7d9c", "semipd.io/template-hash": "h"}}
    inits = [{"name": "proxy", "restartPolicy": "Always"}] if where == "initContainerStatuses" else []
    obj = {"metadata": meta, "spec": {"initContainers": inits}, "status": status}
    assert pod_view(obj).held is None, "the engine loads"
    engine["ready"] = True
    shown = summarise(observed(pods=(pod_view(obj),)))
    ready = shown.condition("Ready")
    assert shown.reason == "ProbeFailing(proxy)" and conditions(shown)["Available"] == "False ProbeFailing"
    assert ready and ready.message.startswith("p1: container proxy runs and is not ready, and the engine is: its ")
    sidecar["state"] = {"running": {"startedAt": ago(29).isoformat()}}
    assert summarise(observed(pods=(pod_view(obj),))).reason == "PodsNotReady", "it starts"
    sidecar["ready"] = True
    assert pod_view(obj).held is None


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
