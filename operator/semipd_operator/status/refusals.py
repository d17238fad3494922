"""Words of the API server and the controllers about a service's objects: refused, late, not reachable. Pure."""

from __future__ import annotations

from typing import Any

from semipd_operator.reasons import Admission, PodTrouble, Reason
from semipd_operator.status.observed import Problem

Object = dict[str, Any]

_ADMISSION: tuple[tuple[str, Reason], ...] = (
    ("failed calling webhook", Admission.ADMISSION_WEBHOOK_FAILED),
    ("denied the request", Admission.ADMISSION_DENIED),
    ("denied request", Admission.ADMISSION_DENIED),
)
"""Of webhooks and of policies. Their words are the cluster's: they come before those below, which may be in them."""
_REFUSALS: tuple[tuple[str, Reason], ...] = (
    ("exceeded quota", PodTrouble.QUOTA_EXCEEDED),
    ("failed quota", PodTrouble.QUOTA_EXCEEDED),
    ("violates PodSecurity", PodTrouble.POD_SECURITY_VIOLATED),
    ("unable to validate against any security context constraint", PodTrouble.POD_SECURITY_VIOLATED),
    ("RuntimeClass", PodTrouble.RUNTIME_CLASS_MISSING),
    ("per Container is", PodTrouble.LIMIT_RANGE_VIOLATED),
    ("per Pod is", PodTrouble.LIMIT_RANGE_VIOLATED),
    ("no PriorityClass with name", PodTrouble.PRIORITY_CLASS_MISSING),
    ("error looking up service account", PodTrouble.SERVICE_ACCOUNT_MISSING),
)
"""Words of the API server's admission plugins, in the order in which they are looked for."""


def refusal(deployment: Object | None) -> Problem | None:
    """Why the API server does not let the Deployment's pods, or their ReplicaSet, be created: what the pods cannot say,
    as there are none."""
    conditions = ((deployment or {}).get("status") or {}).get("conditions") or []
    failure = next((one for one in conditions if _refused(one)), None)
    if failure is None:
        return None
    said = failure.get("message", "")
    reason = next((reason for part, reason in (*_ADMISSION, *_REFUSALS) if part in said), PodTrouble.POD_REFUSED)
    return Problem(reason, said)


def _refused(condition: Object) -> bool:
    if condition["type"] == "Progressing":
        return condition["status"] == "False" and condition.get("reason") == "ReplicaSetCreateError"
    return bool(condition["type"] == "ReplicaFailure" and condition["status"] == "True")


def stalled(deployment: Object | None) -> str:
    """The Deployment's words once a rollout has made no progress for as long as `progressDeadlineSeconds`."""
    conditions = ((deployment or {}).get("status") or {}).get("conditions") or []
    late = (one for one in conditions if one["type"] == "Progressing" and one["status"] == "False")
    return next((f"{one.get('reason', '')}: {one.get('message', '')}" for one in late), "")


def unexposed(service: Object | None) -> str:
    """Why a Service that should have an address outside of the cluster has none."""
    if service is None or (service.get("spec") or {}).get("type") != "LoadBalancer":
        return ""
    if ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress"):
        return ""
    name = service["metadata"]["name"]
    return f"no load balancer has given Service {name} an address yet: kubectl describe service {name}"


def admission(said: str) -> Reason | None:
    """Whether the cluster's own webhooks and policies refuse an object, and not the API server itself."""
    return next((reason for part, reason in _ADMISSION if part in said), None)
