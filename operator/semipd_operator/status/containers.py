"""Reads the containers of a pod: what each waits for, how it ended, and what `semipd-engine fetch` left behind."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from semipd_operator.reasons import ModelTrouble, PodTrouble
from semipd_operator.render.names import ENGINE_CONTAINER, MODEL_CONTAINER
from semipd_operator.status import words
from semipd_operator.status.observed import Problem

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
_MORE_MEMORY = (
    "Raise spec.engine.resources.limits.memory (unset, the limit is of a LimitRange of the namespace), or lower "
    "spec.engine.kvCacheMemory or maxModelLen."
)
_MORE_MEMORY_BESIDE = "Raise resources.limits.memory of container {} in spec.podTemplate, or where a webhook adds it."
_NO_ENGINE = "Correct spec.engine.image (or the chart's engine.image): that image is none of SemiPD's engine."
_NEVER_RAN = ("StartError", "ContainerCannotRun")
"""The runtime could not start what the image names."""
_HEALTHY_SECONDS = 600.0
"""A kubelet forgets its back-off after such a run."""
_OUTLIVED_SECONDS = 60.0
"""A shorter run proves nothing."""
_A_LOOP = 3
"""Restarts; fewer may well be a bad start."""
_NEW_TRY_SECONDS = 15.0
"""What cannot be reached, or refuses, mostly says so sooner."""
_LONGEST_REVISION = 253
_MOST_READ = 4096
"""As much as a kubelet keeps of a container's words."""
_LAST_LINES, _LAST_CHARACTERS = 3, 400
"""Of the log: what a program says last is mostly why."""


def container_problem(pod: Pod, status: dict[str, Any]) -> Problem | None:
    """Why a container cannot start or stay: the first that says so, and whose trouble lasts."""
    found = [problem for container in containers_of(status) if (problem := _trouble(pod, status, container))]
    return next((problem for problem in found if problem.until is None), next(iter(found), None))


def _trouble(pod: Pod, status: dict[str, Any], container: dict[str, Any]) -> Problem | None:
    waiting = state_of(container).get("waiting") or {}
    name = container.get("name", "")
    if reason := _WAITING.get(waiting.get("reason", "")):
        said = waiting.get("message") or waiting["reason"]
        what = _NO_ENGINE if reason is PodTrouble.CONTAINER_NOT_STARTED and _lacks_our_program(name, said) else ""
        return Problem(reason, f"container {name}: {said}", name, remedy=what)
    ended = (_killed(pod, container) or _fails_again(pod, container)) and not _overcame(pod, status, container)
    crashes = waiting.get("reason") == "CrashLoopBackOff" or ended or _ready_between(pod, container)
    if crashes and (name != MODEL_CONTAINER or last_end(container).get("reason") in _NEVER_RAN):
        return replace(_crash(pod, name, container), until=_outlived_at(pod, container))
    return None


def _killed(pod: Pod, container: dict[str, Any]) -> bool:
    """Killed for memory, and not ready since: it loads again, and will be killed again."""
    return last_end(container).get("reason") == "OOMKilled" and not _proved(pod, container)


def _proved(pod: Pod, container: dict[str, Any]) -> bool:
    """Whether it is ready, and a probe has said so: without one a container is ready as soon as it runs."""
    return bool(container.get("ready")) and _probed(pod, container)


def _overcame(pod: Pod, status: dict[str, Any], container: dict[str, Any]) -> bool:
    """It served since: which proves nothing of one that is ready as soon as it runs, and that never ran for long."""
    proves = _probed(pod, container) or _lived(last_end(container)) >= _HEALTHY_SECONDS
    return proves and has_served(status, container)


def _probed(pod: Pod, container: dict[str, Any]) -> bool:
    name = container.get("name", "")
    return name == ENGINE_CONTAINER or any(
        one.get("name") == name and one.get("readinessProbe") for one in _specified(pod)
    )


def _outlived_at(pod: Pod, container: dict[str, Any]) -> datetime | None:
    """When a container that nobody probes, and that runs, will have outlived what ended it: by twice its last run, but
    a kubelet's own measure is the most."""
    began = started_at(container)
    if began is not None and _ready_between(pod, container):
        return began + timedelta(seconds=2 * _lived(last_end(container)))
    if began is None or _probed(pod, container):
        return None
    least = max(_OUTLIVED_SECONDS, 2 * _lived(last_end(container)))
    return began + timedelta(seconds=min(least, _HEALTHY_SECONDS))


def _ready_between(pod: Pod, container: dict[str, Any]) -> bool:
    """A probed one that is ready, as it may have been in each of its lives, the last of which was short: what its
    liveness probe ends, or what crashes once it serves. Whether that is over, a life that lasts longer shows."""
    last = last_end(container)
    short = bool(last.get("exitCode")) and 0 < _lived(last) < _OUTLIVED_SECONDS
    return short and container.get("restartCount", 0) >= _A_LOOP and _proved(pod, container)


def _fails_again(pod: Pod, container: dict[str, Any]) -> bool:
    """Also between two crashes: it runs, or has just ended, has not proved itself, and failed the last time, soon after
    its start. From the first time on: that it starts again tells less than what it said last."""
    last = last_end(container)
    return bool(last.get("exitCode")) and _lived(last) < _HEALTHY_SECONDS and not _proved(pod, container)


def _lived(end: dict[str, Any]) -> float:
    """Seconds of a run, by how it ended; 0: nobody says."""
    began, ended = time_of(end.get("startedAt")), time_of(end.get("finishedAt"))
    return (ended - began).total_seconds() if began and ended else 0.0


def has_served(status: dict[str, Any], container: dict[str, Any]) -> bool:
    """Whether it was ready since its last start: what ended it before is not why it is not ready now. A pod's condition
    Ready changes in a container's run only if all of them were ready in it."""
    began, changed = started_at(container), time_of(condition_of(status, "Ready").get("lastTransitionTime"))
    return began is not None and changed is not None and changed > began


def _crash(pod: Pod, name: str, container: dict[str, Any]) -> Problem:
    last = last_end(container)
    code = last.get("exitCode")
    if last.get("reason") == "OOMKilled":
        killed = f"container {name} was killed at its memory limit{_limit(pod, name)}"
        what = _MORE_MEMORY if name == ENGINE_CONTAINER else _MORE_MEMORY_BESIDE.format(name)
        return Problem(ModelTrouble.OUT_OF_MEMORY, killed, name, code, remedy=what)
    said = words.masked((last.get("message") or "")[-_MOST_READ:]).strip()
    if last.get("reason") in _NEVER_RAN:
        what = _NO_ENGINE if _lacks_our_program(name, said) else ""
        return Problem(PodTrouble.CONTAINER_NOT_STARTED, f"container {name}: {said}", name, code, remedy=what)
    # A kubelet counts the starts after the first: the last of them has ended, too, unless it runs.
    count = container.get("restartCount", 0) + ("running" not in state_of(container))
    times = "once," if count == 1 else f"{count} times, last"
    lines = "; ".join(said.splitlines()[-_LAST_LINES:])[-_LAST_CHARACTERS:]
    message = f"container {name} ended {times} with exit status {code}" + (f": {lines}" if lines else "")
    return Problem(PodTrouble.CRASH_LOOP, message, name, code)


def _lacks_our_program(name: str, said: str) -> bool:
    """The runtimes' words: runc looks a plain name up in $PATH, crun says so shortly."""
    lacks = "executable file" in said and "not found" in said
    return name in (ENGINE_CONTAINER, MODEL_CONTAINER) and lacks and "semipd-" in said


def _limit(pod: Pod, name: str) -> str:
    for container in _specified(pod):
        limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
        if container.get("name") == name and limit:
            return f" of {limit}"
    return ""


def _specified(pod: Pod) -> list[dict[str, Any]]:
    spec = pod.get("spec") or {}
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def model_problem(pod: Pod, model: dict[str, Any]) -> Problem | None:
    """From the one line of JSON that ``semipd-engine fetch`` leaves: ``{"reason": ..., "message": ...}``. While it
    tries again that is still what is known, until the new try has lasted longer than those that fail."""
    found, began = _model_problem(pod, model), started_at(model)
    if found is None or "running" not in state_of(model):
        return found
    lasts = min(max(_NEW_TRY_SECONDS, 2 * _lived(last_end(model))), _OUTLIVED_SECONDS)
    return replace(found, until=began + timedelta(seconds=lasts)) if began else None


def _model_problem(pod: Pod, model: dict[str, Any]) -> Problem | None:
    ended = last_end(model)
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


def model_revision(model: dict[str, Any]) -> str:
    ended = state_of(model).get("terminated") or {}
    said = str(_said(ended).get("revision") or "")
    return "" if ended.get("exitCode", 1) or len(said) > _LONGEST_REVISION else said


def _said(ended: dict[str, Any]) -> dict[str, Any]:
    """The line of JSON that ``semipd-engine fetch`` leaves behind; empty if there is none."""
    try:
        said = json.loads((ended.get("message") or "").strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def containers_of(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def container_named(statuses: list[dict[str, Any]] | None, name: str) -> dict[str, Any]:
    return next((entry for entry in statuses or [] if entry.get("name") == name), {})


def state_of(container: dict[str, Any]) -> dict[str, Any]:
    return container.get("state") or {}


def started_at(container: dict[str, Any]) -> datetime | None:
    return time_of((state_of(container).get("running") or {}).get("startedAt"))


def last_end(container: dict[str, Any]) -> dict[str, Any]:
    """How it ended last; empty if it never did."""
    return state_of(container).get("terminated") or (container.get("lastState") or {}).get("terminated") or {}


def waits_for(container: dict[str, Any]) -> str:
    return str((state_of(container).get("waiting") or {}).get("reason", ""))


def condition_of(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((entry for entry in status.get("conditions") or [] if entry.get("type") == kind), {})


def time_of(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
