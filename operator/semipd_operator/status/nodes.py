"""What a pod's node says: why it cannot make the pod, in events; whether it is well, and shares its GPUs. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from semipd_operator.api.v1alpha1.engine import GPU
from semipd_operator.reasons import PodTrouble, Reason
from semipd_operator.status.observed import Problem
from semipd_operator.status.pods import claims_of
from semipd_operator.status.probes import last_seen
from semipd_operator.status.taints import Taint, taints_of

Object = dict[str, Any]

_SUMMARY = ("Unable to attach or mount volumes", "timed out waiting", "error killing pod")
"""The kubelet's summaries tell less than what comes before them."""
_OF_STARTING: dict[str, Reason] = {
    "FailedMount": PodTrouble.VOLUME_NOT_MOUNTED,
    "FailedAttachVolume": PodTrouble.VOLUME_NOT_MOUNTED,
    "FailedMapVolume": PodTrouble.VOLUME_NOT_MOUNTED,
    "FailedCreatePodSandBox": PodTrouble.CONTAINER_NOT_STARTED,
    "NetworkNotReady": PodTrouble.CONTAINER_NOT_STARTED,
    "FailedToRetrieveImagePullSecret": PodTrouble.IMAGE_PULL_FAILED,
}
_BY_WORDS = {
    "setup network": "Mend the node's network plugin (CNI), or its range of addresses.",
    "NetworkPluginNotReady": "Mend the node's network plugin (CNI).",
    "no runtime for": "Correct runtimeClassName in spec.podTemplate, or install that runtime on the node.",
    "RuntimeHandler": "Correct runtimeClassName in spec.podTemplate, or install that runtime on the node.",
    "mount failed": "Mend what mount says: the server's exports and permissions, its address, the node's mount tools.",
}
"""What to do, where the words tell it better than the event's reason."""
_MISSING_OBJECT = re.compile(r'\b(secret|configmap|persistentvolumeclaim) "(?:[^"/]*/)?([^"]+)" not found')
_VOLUME = re.compile(r'for volume "([^"]+)"')
_MISSING_KEY = re.compile(r"references non-existent (?:secret|config) key: (\S+)")


def complaint(events: list[Object], pod: Object) -> Problem | None:
    """The latest word of those that make volumes, network and sandbox of the pod."""
    found = [event for event in events if event.get("reason") in _OF_STARTING and event.get("message")]
    found.sort(key=last_seen)
    telling = [event for event in found if not event["message"].startswith(_SUMMARY)] or found
    if not telling:
        return None
    words = str(telling[-1]["message"])
    if "Multi-Attach" in words:  # of the volume, whose name nobody gave it
        claims = claims_of(pod)
        said = f"claim {claims}: {words}" if claims else words
        return Problem(PodTrouble.CLAIM_IN_USE, said, claims)
    if missing := _MISSING_OBJECT.search(words):
        return Problem(PodTrouble.VOLUME_NOT_MOUNTED, words, f"{missing[1]}/{missing[2]}")
    if key := _MISSING_KEY.search(words):
        source = _source(pod, words)
        return Problem(PodTrouble.VOLUME_NOT_MOUNTED, words, " ".join(filter(None, (source, f"key {key[1]}"))))
    what = next((what for part, what in _BY_WORDS.items() if part in words), "")
    return Problem(_OF_STARTING[telling[-1]["reason"]], words, remedy=what)


def _source(pod: Object, words: str) -> str:
    """What the volume is made of that the words are about; empty if they name none."""
    name = _VOLUME.search(words)
    for volume in (pod.get("spec") or {}).get("volumes") or []:
        if name and volume.get("name") == name[1]:
            secret, config_map = volume.get("secret") or {}, volume.get("configMap") or {}
            return (
                f"secret/{secret['secretName']}" if secret else f"configmap/{config_map.get('name')}" * bool(config_map)
            )
    return ""


def claim_words(events: list[Object]) -> str:
    """Why a claim has no volume: the latest of what its provisioner, or the controller of volumes, says of it."""
    said = sorted((event for event in events if event.get("message")), key=last_seen)
    has_one = bool(said) and said[-1].get("reason") == "ProvisioningSucceeded"
    return str(said[-1]["message"]).rstrip(".") if said and not has_one else ""


@dataclass(frozen=True)
class NodeView:
    gpu_sharing: str = ""
    """The label by which it says that its device plugin gives one GPU to several pods; empty: it does not."""
    problem: Problem | None = None
    """Why none of its pods can serve."""
    taints: tuple[Taint, ...] = ()
    """Those that keep pods away."""


def node_view(name: str, node: Object | None) -> NodeView:
    """None: there is no such node, though a pod is bound to it."""
    if node is None:
        return NodeView(problem=Problem(PodTrouble.NODE_NOT_READY, f"node {name} is gone", name))
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = next((one for one in conditions if one.get("type") == "Ready"), None)
    problem = None
    if ready and ready.get("status") != "True":
        words = ready.get("message") or ready.get("reason") or "it says nothing"
        problem = Problem(PodTrouble.NODE_NOT_READY, f"node {name} is not ready: {words}", name)
    return NodeView(gpu_sharing(node), problem, taints_of(node))


_SHARING_LABELS = ("nvidia.com/gpu.sharing-strategy", "cloud.google.com/gke-gpu-sharing-strategy")
_REPLICAS_LABEL = "nvidia.com/gpu.replicas"
"""Of older device plugins, which name no strategy."""


def gpu_sharing(node: Object) -> str:
    """The label by which a node says that its device plugin gives one GPU to several pods; empty: it does not.
    https://github.com/NVIDIA/k8s-device-plugin/tree/main/docs/gpu-feature-discovery"""
    labels = node["metadata"].get("labels") or {}
    for name in _SHARING_LABELS:
        if (value := labels.get(name, "")) not in ("", "none"):
            return f"{name}={value}"
    replicas = labels.get(_REPLICAS_LABEL, "")
    told = any(name in labels for name in _SHARING_LABELS)
    return f"{_REPLICAS_LABEL}={replicas}" if replicas.isdigit() and int(replicas) > 1 and not told else ""


def wants_gpu(pod: Object) -> bool:
    containers = (pod.get("spec") or {}).get("containers") or []
    return any(GPU in ((one.get("resources") or {}).get("limits") or {}) for one in containers)
