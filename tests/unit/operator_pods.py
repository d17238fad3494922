"""Statuses of pods as kubelet, scheduler and node controller leave them, written by hand."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.operator_observed import ago

from semipd_operator.status import PodView
from semipd_operator.status.pods import pod_view


def unplaced(words: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    return {"phase": "Pending", "conditions": [condition]}


def waiting(reason: str, message: str = "", name: str = "engine") -> dict[str, Any]:
    return {"containerStatuses": [{"name": name, "state": {"waiting": {"reason": reason, "message": message}}}]}


def ended(reason: str, message: str = "", seconds: float = 5) -> dict[str, Any]:
    return {"phase": "Failed", "reason": reason, "message": message, "startTime": ago(seconds).isoformat()}


def running(name: str, seconds: float) -> dict[str, Any]:
    return {"name": name, "ready": False, "state": {"running": {"startedAt": ago(seconds).isoformat()}}}


def fetched(reason: str, message: str, code: int = 1) -> dict[str, Any]:
    said = json.dumps({"reason": reason, "message": message})
    last = {"terminated": {"exitCode": code, "message": said}}
    back_off = {"waiting": {"reason": "CrashLoopBackOff"}}
    return {"initContainerStatuses": [{"name": "model", "state": back_off, "lastState": last}]}


def crashed(container: str, code: int, words: str, where: str = "containerStatuses") -> dict[str, Any]:
    last = {"terminated": {"exitCode": code, "message": words}}
    one = {"name": container, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last}
    return {where: [{**one, "restartCount": 3}]}


def stuck(words: str = "", **status: Any) -> PodView:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    meta = {"name": "p2", "uid": "p2", "namespace": "d", "labels": {"semipd.io/template-hash": "h"}}
    return pod_view({"metadata": meta, "status": status or {"conditions": [unscheduled]}})
