"""An API server that counts what it is asked as a courtesy, and pods that stand still."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.unit.operator_observed import ago

from semipd_operator.answers import ApiAway, ApiRefused

SHARED = {"nvidia.com/gpu.sharing-strategy": "mps"}
GPU = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 1}}}]}
CREATING = {"name": "engine", "ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}
FORBIDDEN, AWAY = ApiRefused(403, "forbidden"), ApiAway("no answer")
TROUBLE = [ApiRefused(503, "etcd"), ApiRefused(429, "slow down"), ApiRefused(500, "oops"), AWAY, None]
"""None: it does not answer for long."""


@dataclass
class Asked:
    """Answers as the API server, or fails."""

    failure: Exception | None = None
    silent: bool = False
    node: dict[str, Any] | None = field(default_factory=lambda: {"metadata": {"labels": SHARED}})
    count: Counter[str] = field(default_factory=Counter)
    bound: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Claims that have their volume, and what was said of them: reason and message."""

    async def _ask(self, name: str) -> None:
        self.count[name] += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        await self._ask(name)
        return self.node if kind == "Node" else None

    async def events(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        await self._ask(uid)
        return [{"reason": "FailedMount", "message": f"no volume for {uid}", "lastTimestamp": "2026-01-02T03:04:05Z"}]

    async def claim_events(self, namespace: str, claim: str) -> list[dict[str, Any]]:
        await self._ask(f"{namespace}/{claim}")
        waits = [("ProvisioningFailed", "older"), ("FailedBinding", f"no storage class is set for {claim}")]
        said = self.bound.get(claim, waits)
        return [
            {"reason": why, "message": what, "lastTimestamp": f"2026-01-02T03:04:0{n}Z"}
            for n, (why, what) in enumerate(said)
        ]

    async def some_nodes(self) -> list[dict[str, Any]]:
        await self._ask("nodes")
        return [self.node] if self.node else []

    async def serves(self, api_version: str) -> bool:
        await self._ask(api_version)
        return False


def raw(name: str, seconds: float, **spec: Any) -> dict[str, Any]:
    since = ago(seconds).isoformat()
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": since}]
    meta = {"name": name, "uid": name, "namespace": "d", "labels": {"pod-template-hash": "7d9c"}}
    status = {"conditions": conditions, "containerStatuses": [CREATING]}
    return {"metadata": meta, "spec": {"nodeName": "n1", **spec}, "status": status}


def unready(name: str, seconds: float, **spec: Any) -> dict[str, Any]:
    """It was started, and has not been ready for so long."""
    one = raw(name, seconds, **spec)
    condition = {"type": "Ready", "status": "False", "lastTransitionTime": ago(seconds).isoformat()}
    one["status"] = {"conditions": [condition], "containerStatuses": [{"name": "engine", "state": {"running": {}}}]}
    return one


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now
