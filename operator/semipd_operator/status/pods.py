"""Reads a pod as the API server returns it: is it ready, and if it cannot start, why, in the words of `reasons`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from semipd_operator.reasons import ModelTrouble, PodTrouble
from semipd_operator.render.names import ENGINE_CONTAINER, MODEL_CONTAINER, SERVICE_LABEL, TEMPLATE_HASH_LABEL
from semipd_operator.status import words
from semipd_operator.status.observed import PodView, Problem
from semipd_operator.status.scheduling import unheard, unplaced

Pod = dict[str, Any]

_WAITING = {
    "ErrImagePull": PodTrouble.IMAGE_PULL_FAILED,
    "ImagePullBackOff": PodTrouble.IMAGE_PULL_FAILED,
    "InvalidImageName": PodTrouble.IMAGE_PULL_FAILED,
    "ErrImageNeverPull": PodTrouble.IMAGE_PULL_FAILED,
    "ImageInspectError": PodTrouble.IMAGE_PULL_FAILED,
    "RegistryUnavailable": PodTrouble.IMAGE_PULL_FAILED,
    "SignatureValidationFailed": PodTrouble.IMAGE_PULL_FAILED,
    "CreateContainerConfigError": PodTrouble.CREATE_CONTAINER_CONFIG_ERROR,
    "CreateContainerError": PodTrouble.CONTAINER_NOT_STARTED,
    "RunContainerError": PodTrouble.CONTAINER_NOT_STARTED,
    "PreCreateHookError": PodTrouble.CONTAINER_NOT_STARTED,
    "PreStartHookError": PodTrouble.CONTAINER_NOT_STARTED,
    "PostStartHookError": PodTrouble.CONTAINER_NOT_STARTED,
}
_REPLICA_SET_LABEL = "pod-template-hash"
SILENCE_SECONDS = 30.0
"""Volumes, network and sandbox of a pod usually take a few; a scheduler takes less than one."""


def pod_view(pod: Pod) -> PodView:
    meta, status = pod["metadata"], pod.get("status") or {}
    engine = _container(status.get("containerStatuses"), ENGINE_CONTAINER)
    model = _container(status.get("initContainerStatuses"), MODEL_CONTAINER)
    held = _held(pod, status)
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        node=(pod.get("spec") or {}).get("nodeName", ""),
        ip=status.get("podIP", ""),
        ready=_condition(status, "Ready").get("status") == "True",
        ready_since=_time(_condition(status, "Ready").get("lastTransitionTime") or meta.get("creationTimestamp")),
        terminating=bool(meta.get("deletionTimestamp")),
        ended_at=_ended_at(pod, status),
        template_hash=(meta.get("labels") or {}).get(TEMPLATE_HASH_LABEL, ""),
        stranger=_stranger(meta),
        downloading="running" in _state(model),
        started="running" in _state(engine),
        started_at=_started_at(engine),
        held=held[0],
        held_since=held[1],
        unproved=_unproved(engine),
        restarted=_restarted(pod, status),
        model_revision=_model_revision(model),
        claims=_claims(pod),
        preparing_since=_preparing_since(status),
        unseen_since=_unseen_since(pod, status),
        unseen=_unheard(pod, status),
        pulling=_pulling(status),
        problem=_pod_problem(pod, status),
        model_problem=_model_problem(pod, model),
    )


def _held(pod: Pod, status: dict[str, Any]) -> tuple[Problem | None, datetime | None]:
    """A container of someone else's that the pod waits for, and since when it runs: an init container that does not
    end, a sidecar that does not start, or a container beside the engine that is not ready though the engine is."""
    sidecars = _sidecars(pod)
    for one in status.get("initContainerStatuses") or []:
        name = one.get("name", "")
        if name == MODEL_CONTAINER or "running" not in _state(one):
            continue
        if name in sidecars and one.get("started") is False:
            said = f"container {name} runs, and its startup probe has not succeeded: the containers after it wait"
            return Problem(PodTrouble.PROBE_FAILING, said, name), _started_at(one)
        if name not in sidecars:
            problem = Problem(PodTrouble.INIT_CONTAINER_RUNNING, f"init container {name} has not ended", name)
            return problem, _started_at(one)
    if not _container(status.get("containerStatuses"), ENGINE_CONTAINER).get("ready"):
        return None, None
    for one in _containers(status):
        if "running" in _state(one) and not one.get("ready"):
            name = one.get("name", "")
            said = f"container {name} runs and is not ready, and the engine is: its readiness or startup probe fails"
            return Problem(PodTrouble.PROBE_FAILING, said, name), _started_at(one)
    return None, None


def _unproved(engine: dict[str, Any]) -> str:
    if "running" not in _state(engine) or engine.get("ready"):
        return ""
    return "startup" if engine.get("started") is False else "readiness"


def _restarted(pod: Pod, status: dict[str, Any]) -> tuple[tuple[str, datetime | None], ...]:
    """Those that are probed: containers beside each other, and init containers that stay."""
    probed = [*(status.get("containerStatuses") or [])]
    probed += [one for one in status.get("initContainerStatuses") or [] if one.get("name") in _sidecars(pod)]
    ended = [one for one in probed if _ended(one) and not one.get("ready") and not _served(status, one)]
    return tuple((one.get("name", ""), _time(_ended(one).get("startedAt"))) for one in ended)


def _sidecars(pod: Pod) -> set[str]:
    inits = (pod.get("spec") or {}).get("initContainers") or []
    return {one.get("name", "") for one in inits if one.get("restartPolicy") == "Always"}


def _started_at(container: dict[str, Any]) -> datetime | None:
    return _time((_state(container).get("running") or {}).get("startedAt"))


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
        evicted = status.get("reason") == "Evicted"
        return Problem(PodTrouble.EVICTED if evicted else PodTrouble.POD_FAILED, said or "it ended without a word")
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return unplaced(scheduled.get("message", ""), _claims(pod))
    for container in _containers(status):
        waiting = _state(container).get("waiting") or {}
        name = container.get("name", "")
        if reason := _WAITING.get(waiting.get("reason", "")):
            return Problem(reason, f"container {name}: {waiting.get('message') or waiting['reason']}", name)
        ended = (_killed(pod, container) or _fails_again(pod, container)) and not _served(status, container)
        crashes = waiting.get("reason") == "CrashLoopBackOff" or ended
        if crashes and (name != MODEL_CONTAINER or _ended(container).get("reason") in _NEVER_RAN):
            return _crash(pod, name, container)
    ready = _condition(status, "Ready")
    if ready.get("status") == "False" and ready.get("reason") == PodTrouble.READINESS_GATES_NOT_READY:
        return Problem(PodTrouble.READINESS_GATES_NOT_READY, ready.get("message", ""))
    return None


_OVER = ("Failed", "Succeeded")


def _ended_at(pod: Pod, status: dict[str, Any]) -> datetime | None:
    """When a pod ended that runs no more; roughly, where nobody says it."""
    if status.get("phase") not in _OVER:
        return None
    said = [_time(one.get("lastTransitionTime")) for one in status.get("conditions") or []]
    said += [_time(status.get("startTime")), _time(pod["metadata"].get("creationTimestamp"))]
    return max((time for time in said if time), default=datetime.min.replace(tzinfo=UTC))


def _killed(pod: Pod, container: dict[str, Any]) -> bool:
    """Killed for memory, and not ready since: it loads again, and will be killed again."""
    return _ended(container).get("reason") == "OOMKilled" and not _proved(pod, container)


def _proved(pod: Pod, container: dict[str, Any]) -> bool:
    """Whether it is ready, and a probe has said so: without one a container is ready as soon as it runs."""
    name = container.get("name", "")
    probed = name == ENGINE_CONTAINER or any(
        one.get("name") == name and one.get("readinessProbe") for one in _specified(pod)
    )
    return bool(container.get("ready")) and probed


def _fails_again(pod: Pod, container: dict[str, Any]) -> bool:
    """Between two crashes: it runs, or has just ended, is not ready, and has failed often, the last time soon after
    its start."""
    last = _ended(container)
    often = container.get("restartCount", 0) >= _OFTEN and not _proved(pod, container)
    began, ended = _time(last.get("startedAt")), _time(last.get("finishedAt"))
    lived = (ended - began).total_seconds() if began and ended else 0.0
    return often and bool(last.get("exitCode")) and lived < _HEALTHY_SECONDS


def _served(status: dict[str, Any], container: dict[str, Any]) -> bool:
    """Whether it was ready since its last start: what ended it before is not why it is not ready now. A pod's condition
    Ready changes in a container's run only if all of them were ready in it."""
    began, changed = _started_at(container), _time(_condition(status, "Ready").get("lastTransitionTime"))
    return began is not None and changed is not None and changed > began


def _ended(container: dict[str, Any]) -> dict[str, Any]:
    """How it ended last; empty if it never did."""
    return _state(container).get("terminated") or (container.get("lastState") or {}).get("terminated") or {}


def _crash(pod: Pod, name: str, container: dict[str, Any]) -> Problem:
    last = _ended(container)
    code = last.get("exitCode")
    if last.get("reason") == "OOMKilled":
        killed = f"container {name} was killed at its memory limit{_limit(pod, name)}"
        what = _MORE_MEMORY if name == ENGINE_CONTAINER else _MORE_MEMORY_BESIDE.format(name)
        return Problem(ModelTrouble.OUT_OF_MEMORY, killed, name, code, remedy=what)
    said = words.masked((last.get("message") or "")[-_MOST_READ:]).strip()
    if last.get("reason") in _NEVER_RAN:
        return Problem(PodTrouble.CONTAINER_NOT_STARTED, f"container {name}: {said}", name, code)
    count = container.get("restartCount", 0)
    lines = "; ".join(said.splitlines()[-_LAST_LINES:])[-_LAST_CHARACTERS:]
    message = f"container {name} ended {count} times, last with exit status {code}" + (f": {lines}" if lines else "")
    return Problem(PodTrouble.CRASH_LOOP, message, name, code)


_MORE_MEMORY = (
    "Raise spec.engine.resources.limits.memory (unset, the limit is of a LimitRange of the namespace), or lower "
    "spec.engine.kvCacheMemory or maxModelLen."
)
_MORE_MEMORY_BESIDE = "Raise resources.limits.memory of container {} in spec.podTemplate, or where a webhook adds it."
_NEVER_RAN = ("StartError", "ContainerCannotRun")
"""The runtime could not start what the image names."""
_OFTEN = 3
_HEALTHY_SECONDS = 600.0
"""A kubelet forgets its back-off after such a run."""
_LONGEST_REVISION = 253
_MOST_READ = 4096
"""As much as a kubelet keeps of a container's words."""
_LAST_LINES, _LAST_CHARACTERS = 3, 400
"""Of the log: what a program says last is mostly why."""


def _limit(pod: Pod, name: str) -> str:
    for container in _specified(pod):
        limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
        if container.get("name") == name and limit:
            return f" of {limit}"
    return ""


def _specified(pod: Pod) -> list[dict[str, Any]]:
    spec = pod.get("spec") or {}
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def _preparing_since(status: dict[str, Any]) -> datetime | None:
    """Since when the pod has a node and its sandbox, with volumes and network, has not been made."""
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") != "True" or not _waits_to_begin(status) or _has_sandbox(status):
        return None
    return _time(scheduled.get("lastTransitionTime"))


def _pulling(status: dict[str, Any]) -> str:
    """With the sandbox made, a container that is still to be created waits for its image."""
    if not _has_sandbox(status) or not _waits_to_begin(status):
        return ""
    waiting = next((one for one in _containers(status) if _waits_for(one) == "ContainerCreating"), None)
    first = next(iter(_containers(status)), {})
    return str((waiting or first).get("name", ""))


def _containers(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _waits_for(container: dict[str, Any]) -> str:
    return str((_state(container).get("waiting") or {}).get("reason", ""))


def _waits_to_begin(status: dict[str, Any]) -> bool:
    """Whether the kubelet knows the pod and none of its containers was made."""
    reasons = {_waits_for(one) for one in _containers(status)}
    return bool(reasons) and reasons <= {"ContainerCreating", "PodInitializing"}


def _has_sandbox(status: dict[str, Any]) -> bool:
    return _condition(status, "PodReadyToStartContainers").get("status") == "True"


def _unseen_since(pod: Pod, status: dict[str, Any]) -> datetime | None:
    """Every scheduler says at once what it thinks of a pod; one that is not there says nothing."""
    seen = status.get("conditions") or (pod.get("spec") or {}).get("nodeName") or _containers(status)
    return None if seen else _time(pod["metadata"].get("creationTimestamp"))


def _unheard(pod: Pod, status: dict[str, Any]) -> Problem:
    spec = pod.get("spec") or {}
    devices = [one.get("resourceClaimName") or one.get("name", "") for one in spec.get("resourceClaims") or []]
    node = status.get("nominatedNodeName", "")
    return unheard(spec.get("schedulerName", ""), node, _claims(pod), ",".join(devices))


def _claims(pod: Pod) -> str:
    volumes = (pod.get("spec") or {}).get("volumes") or []
    return ",".join(one["persistentVolumeClaim"]["claimName"] for one in volumes if one.get("persistentVolumeClaim"))


def _model_problem(pod: Pod, model: dict[str, Any]) -> Problem | None:
    """From the one line of JSON that ``semipd-engine fetch`` leaves: ``{"reason": ..., "message": ...}``."""
    state, last = _state(model), (model.get("lastState") or {})
    ended = state.get("terminated") or ({} if "running" in state else last.get("terminated")) or {}
    code = ended.get("exitCode", 0)
    if not code:
        return None
    if ended.get("reason") == "OOMKilled":
        killed = f"the download was killed at the container's memory limit{_limit(pod, MODEL_CONTAINER)}"
        more = "Raise the memory limit in spec.engine.resources, which is the download's, too."
        return Problem(ModelTrouble.OUT_OF_MEMORY, killed, exit_code=code, remedy=more)
    if ended.get("reason") in _NEVER_RAN:  # nothing of the model's
        return None
    said = _said(ended)
    if "reason" not in said:
        text = (ended.get("message") or "").strip()
        return Problem(
            ModelTrouble.DOWNLOAD_FAILED, text or f"semipd-engine fetch ended with exit status {code}", exit_code=code
        )
    return Problem(str(said["reason"]), str(said.get("message") or said.get("detail") or ""), exit_code=code)


def _model_revision(model: dict[str, Any]) -> str:
    ended = _state(model).get("terminated") or {}
    said = str(_said(ended).get("revision") or "")
    return "" if ended.get("exitCode", 1) or len(said) > _LONGEST_REVISION else said


def _said(ended: dict[str, Any]) -> dict[str, Any]:
    """The line of JSON that ``semipd-engine fetch`` leaves behind; empty if there is none."""
    try:
        said = json.loads((ended.get("message") or "").strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _container(statuses: list[dict[str, Any]] | None, name: str) -> dict[str, Any]:
    return next((entry for entry in statuses or [] if entry.get("name") == name), {})


def _state(container: dict[str, Any]) -> dict[str, Any]:
    return container.get("state") or {}


def _condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((entry for entry in status.get("conditions") or [] if entry.get("type") == kind), {})
