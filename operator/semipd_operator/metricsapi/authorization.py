"""May this caller read this metric? The API server is asked (SubjectAccessReview); answers are kept for seconds."""

from __future__ import annotations

import time
from typing import Any, Protocol

from semipd_operator.metricsapi.frontproxy import Caller
from semipd_operator.status.scaling import EXTERNAL_METRICS_API

_ALWAYS = "system:masters"
"""The API server's own group."""
_KEPT_SECONDS = {True: 10.0, False: 5.0}
_MOST_KEPT = 1024


class Reviewer(Protocol):
    async def create(self, api_version: str, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]: ...


class Authorizer:
    def __init__(self, api: Reviewer) -> None:
        self._api = api
        self._kept: dict[tuple[Any, ...], tuple[float, bool]] = {}

    async def may_read_metric(self, caller: Caller, namespace: str, metric: str) -> bool:
        group, version = EXTERNAL_METRICS_API.split("/")
        attributes = {
            "group": group,
            "version": version,
            "namespace": namespace,
            "resource": metric,
            "verb": "list",  # a GET without a name, as kube-apiserver sees it
        }
        if _ALWAYS in caller.groups:
            return True
        # All that the review is asked about; `extra` may hold the scopes of a token that may do less than its user.
        extra = {name: list(values) for name, values in caller.extra.items()}
        about = sorted((name, tuple(values)) for name, values in extra.items())
        key, now = (caller.user, caller.groups, tuple(about), namespace, metric), time.monotonic()
        at, allowed = self._kept.get(key, (float("-inf"), False))
        if now - at <= _KEPT_SECONDS[allowed]:
            return allowed
        spec = {
            "user": caller.user,
            "groups": list(caller.groups),
            "extra": extra,
            "resourceAttributes": attributes,
        }
        kind = "SubjectAccessReview"
        api_version = "authorization.k8s.io/v1"
        body = {"apiVersion": api_version, "kind": kind, "spec": spec}
        answer = await self._api.create(api_version, kind, "", body)
        allowed = bool((answer.get("status") or {}).get("allowed"))
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[key] = (now, allowed)
        return allowed
