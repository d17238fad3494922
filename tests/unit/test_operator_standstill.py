"""A pod that stands still before a container of it runs: no volume, no image, no scheduler that looks at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.operator_observed import ago, conditions, messages, observed
from tests.unit.operator_pods import stuck

from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.status import PodView, summarise
from semipd_operator.status.nodes import complaint
from semipd_operator.status.pods import pod_view

pytestmark = pytest.mark.unit


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


def test_the_volume_of_a_claim_that_is_elsewhere_is_told_by_the_claims_name() -> None:
    """A provisioner names volumes as nobody knows them. Kubernetes 1.36,
    pkg/controller/volume/attachdetach/reconciler: reportMultiAttachError has both of these."""
    alone = 'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node and can\'t be '
    for words in (ATTACHED, alone + "attached to another"):
        claimed = {"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "models"}}, {"name": "tmp"}]}}
        pod = replace(being_made(12), complaint=complaint([warning("FailedAttachVolume", words)], claimed))
        status = summarise(observed(pods=(pod,), agents={}))
        ready = status.condition("Ready")
        assert status.reason == "ClaimInUse(models)" and ready
        assert ready.message == (
            f"p2: claim models: {words}. Remedy: Use a ReadWriteMany or ReadOnlyMany claim, or one replica."
        )


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
