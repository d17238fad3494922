"""What no watch tells and few pods need: why the kubelet cannot make one, and whether its node shares the GPU.

Asked for only where there is a question, and nodes not again for a while. What is refused stays unknown.
It judges nothing: see `semipd_operator.status`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from semipd_operator.kube import ApiRefused
from semipd_operator.status.nodes import complaint, gpu_sharing, wants_gpu
from semipd_operator.status.observed import PodView
from semipd_operator.status.pods import pod_view

Object = dict[str, Any]

ASKED_AFTER_SECONDS = 10.0
"""A pod that the kubelet has been making for less needs no explanation."""
_AT_ONCE = 4
"""Pods asked about in one look: the first one that has trouble is shown."""
_NODE_SECONDS = 300.0


class Kube(Protocol):
    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None: ...
    async def warnings(self, namespace: str, uid: str) -> list[Object]: ...


class Inquiry:
    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._nodes: dict[str, tuple[float, str]] = {}
        """By name: when it was asked for, and how it shares its GPUs."""

    async def look(self, pods: Sequence[Object], now: datetime) -> tuple[PodView, ...]:
        """The pods with what had to be asked for. Raises `ApiAway`."""
        asked, views = 0, []
        for pod in pods:
            view = pod_view(pod)
            waits = view.preparing_since is not None and (now - view.preparing_since).total_seconds()
            if waits and waits >= ASKED_AFTER_SECONDS and asked < _AT_ONCE:
                asked += 1
                view = replace(view, complaint=complaint(await self._warnings(pod["metadata"])))
            if view.node and wants_gpu(pod):
                view = replace(view, gpu_sharing=await self._sharing(view.node))
            views.append(view)
        return tuple(views)

    async def _warnings(self, meta: Object) -> list[Object]:
        try:
            return await self._kube.warnings(meta["namespace"], meta["uid"])
        except ApiRefused:
            return []

    async def _sharing(self, node: str) -> str:
        asked, sharing = self._nodes.get(node, (float("-inf"), ""))
        if self._clock() - asked < _NODE_SECONDS:
            return sharing
        try:
            live = await self._kube.get("v1", "Node", "", node)
        except ApiRefused:
            live = None
        self._nodes = {name: known for name, known in self._nodes.items() if self._clock() - known[0] < _NODE_SECONDS}
        sharing = gpu_sharing(live) if live else ""
        self._nodes[node] = (self._clock(), sharing)
        return sharing
