"""Reads a pod as the API server returns it: is it ready, and if it cannot start, why, in the words of `reasons`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from semipd_operator.reasons import PodTrouble
from semipd_operator.render.names import ENGINE_CONTAINER, MODEL_CONTAINER, SERVICE_LABEL, TEMPLATE_HASH_LABEL
from semipd_operator.status.containers import (
    Pod,
    condition_of,
    container_named,
    container_problem,
    containers_of,
    has_served,
    last_end,
    model_problem,
    model_revision,
    started_at,
    state_of,
    time_of,
    waits_for,
)
from semipd_operator.status.disruption import disruption
from semipd_operator.status.observed import PodView, Problem
from semipd_operator.status.scheduling import unheard, unplaced

_REPLICA_SET_LABEL = "pod-template-hash"
SILENCE_SECONDS = 30.0
"""Volumes, network and sandbox of a pod usually take a few; a scheduler takes less than one."""


def pod_view(pod: Pod) -> PodView:
    meta, status = pod["metadata"], pod.get("status") or {}
    engine = container_named(status.get("containerStatuses"), ENGINE_CONTAINER)
    model = container_named(status.get("initContainerStatuses"), MODEL_CONTAINER)
    held = _held(pod, status)
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        node=(pod.get("spec") or {}).get("nodeName", ""),
        ip=status.get("podIP", ""),
        ready=condition_of(status, "Ready").get("status") == "True",
        ready_since=time_of(condition_of(status, "Ready").get("lastTransitionTime") or meta.get("creationTimestamp")),
        terminating=bool(meta.get("deletionTimestamp")),
        disruption=disruption(pod, status),
        created_at=time_of(meta.get("creationTimestamp")),
        ended_at=_ended_at(pod, status),
        template_hash=(meta.get("labels") or {}).get(TEMPLATE_HASH_LABEL, ""),
        stranger=_stranger(meta),
        downloading="running" in state_of(model),
        started="running" in state_of(engine),
        started_at=started_at(engine),
        served=has_served(status, engine),
        held=held[0],
        held_since=held[1],
        unproved=_unproved(engine),
        restarted=_restarted(pod, status),
        model_revision=model_revision(model),
        claims=claims_of(pod),
        preparing_since=_preparing_since(status),
        unseen_since=_unseen_since(pod, status),
        unseen=_unheard(pod, status),
        pulling=_pulling(status),
        problem=_pod_problem(pod, status),
        model_problem=model_problem(pod, model),
    )


def _held(pod: Pod, status: dict[str, Any]) -> tuple[Problem | None, datetime | None]:
    """A container of someone else's that the pod waits for, and since when it runs: an init container that does not
    end, a sidecar that does not start, or a container beside the engine that is not ready though the engine is."""
    sidecars = _sidecars(pod)
    for one in status.get("initContainerStatuses") or []:
        name = one.get("name", "")
        if name == MODEL_CONTAINER or "running" not in state_of(one):
            continue
        if name in sidecars and one.get("started") is False:
            said = f"container {name} runs, and its startup probe has not succeeded: the containers after it wait"
            return Problem(PodTrouble.PROBE_FAILING, said, name), started_at(one)
        if name not in sidecars:
            problem = Problem(PodTrouble.INIT_CONTAINER_RUNNING, f"init container {name} has not ended", name)
            return problem, started_at(one)
    if not container_named(status.get("containerStatuses"), ENGINE_CONTAINER).get("ready"):
        return None, None
    for one in containers_of(status):
        if "running" in state_of(one) and not one.get("ready"):
            name = one.get("name", "")
            said = f"container {name} runs and is not ready, and the engine is: its readiness or startup probe fails"
            return Problem(PodTrouble.PROBE_FAILING, said, name), started_at(one)
    return None, None


def _unproved(engine: dict[str, Any]) -> str:
    if "running" not in state_of(engine) or engine.get("ready"):
        return ""
    return "startup" if engine.get("started") is False else "readiness"


def _restarted(pod: Pod, status: dict[str, Any]) -> tuple[tuple[str, datetime | None], ...]:
    """Those that are probed: containers beside each other, and init containers that stay."""
    probed = [*(status.get("containerStatuses") or [])]
    probed += [one for one in status.get("initContainerStatuses") or [] if one.get("name") in _sidecars(pod)]
    ended = [one for one in probed if last_end(one) and not one.get("ready") and not has_served(status, one)]
    return tuple((one.get("name", ""), time_of(last_end(one).get("startedAt"))) for one in ended)


def _sidecars(pod: Pod) -> set[str]:
    inits = (pod.get("spec") or {}).get("initContainers") or []
    return {one.get("name", "") for one in inits if one.get("restartPolicy") == "Always"}


def _stranger(meta: dict[str, Any]) -> str:
    """A Deployment calls its ReplicaSets by its own name and a hash, and they label their pods with that hash: such a
    pod that nobody controls was orphaned, and will be adopted."""
    labels = meta.get("labels") or {}
    owner = next((one for one in meta.get("ownerReferences") or [] if one.get("controller")), None)
    if owner is None:
        return "" if _REPLICA_SET_LABEL in labels else "nobody"
    if owner["kind"] == "ReplicaSet" and owner["name"].rpartition("-")[0] == labels.get(SERVICE_LABEL):
        return ""
    return f"{owner['kind']} {owner['name']}"


def _pod_problem(pod: Pod, status: dict[str, Any]) -> Problem | None:
    if status.get("phase") in _OVER:
        said = ": ".join(filter(None, (status.get("reason"), status.get("message"))))
        reason = _ENDED.get(status.get("reason", ""), PodTrouble.POD_FAILED)
        return Problem(reason, said or "it ended without a word")
    scheduled = condition_of(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return unplaced(scheduled.get("message", ""), claims_of(pod))
    found = container_problem(pod, status)
    ready = condition_of(status, "Ready")
    if ready.get("status") == "False" and ready.get("reason") == PodTrouble.READINESS_GATES_NOT_READY:
        gates = Problem(PodTrouble.READINESS_GATES_NOT_READY, ready.get("message", ""))
        return found if found and found.until is None else gates
    return found


_OVER = ("Failed", "Succeeded")
_ENDED = {"Evicted": PodTrouble.EVICTED, "Preempting": PodTrouble.PREEMPTED}
"""By the kubelet."""


def _ended_at(pod: Pod, status: dict[str, Any]) -> datetime | None:
    """When a pod ended that runs no more; roughly, where nobody says it."""
    if status.get("phase") not in _OVER:
        return None
    said = [time_of(one.get("lastTransitionTime")) for one in status.get("conditions") or []]
    said += [time_of(status.get("startTime")), time_of(pod["metadata"].get("creationTimestamp"))]
    return max((time for time in said if time), default=datetime.min.replace(tzinfo=UTC))


def _preparing_since(status: dict[str, Any]) -> datetime | None:
    """Since when the pod has a node and its sandbox, with volumes and network, has not been made."""
    scheduled = condition_of(status, "PodScheduled")
    if scheduled.get("status") != "True" or not _waits_to_begin(status) or _has_sandbox(status):
        return None
    return time_of(scheduled.get("lastTransitionTime"))


def _pulling(status: dict[str, Any]) -> str:
    """With the sandbox made, a container that is still to be created waits for its image."""
    if not _has_sandbox(status) or not _waits_to_begin(status):
        return ""
    waiting = next((one for one in containers_of(status) if waits_for(one) == "ContainerCreating"), None)
    first = next(iter(containers_of(status)), {})
    return str((waiting or first).get("name", ""))


def _waits_to_begin(status: dict[str, Any]) -> bool:
    """Whether the kubelet knows the pod and none of its containers was made."""
    reasons = {waits_for(one) for one in containers_of(status)}
    return bool(reasons) and reasons <= {"ContainerCreating", "PodInitializing"}


def _has_sandbox(status: dict[str, Any]) -> bool:
    return condition_of(status, "PodReadyToStartContainers").get("status") == "True"


def _unseen_since(pod: Pod, status: dict[str, Any]) -> datetime | None:
    """Every scheduler says at once what it thinks of a pod; one that is not there says nothing."""
    seen = status.get("conditions") or (pod.get("spec") or {}).get("nodeName") or containers_of(status)
    return None if seen else time_of(pod["metadata"].get("creationTimestamp"))


def _unheard(pod: Pod, status: dict[str, Any]) -> Problem:
    spec = pod.get("spec") or {}
    devices = [one.get("resourceClaimName") or one.get("name", "") for one in spec.get("resourceClaims") or []]
    node = status.get("nominatedNodeName", "")
    return unheard(spec.get("schedulerName", ""), node, claims_of(pod), ",".join(devices))


def claims_of(pod: Pod) -> str:
    """Of its volumes, with commas: that it names, or that are made for it alone (named by the pod and the volume)."""
    volumes = (pod.get("spec") or {}).get("volumes") or []
    named = [one["persistentVolumeClaim"]["claimName"] for one in volumes if one.get("persistentVolumeClaim")]
    own = [f"{pod['metadata']['name']}-{one.get('name', '')}" for one in volumes if one.get("ephemeral")]
    return ",".join([*named, *own])
