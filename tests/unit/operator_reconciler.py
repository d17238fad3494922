"""A reconciler on an API server in memory, for the tests of what it makes, shows and leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tests.unit.kube_stand_in import KEY, StandIn, new_service
from tests.unit.operator_rendered import SETTINGS

from semipd_operator.informer import Informer
from semipd_operator.poller import AgentPoller
from semipd_operator.reconcile import Next, Reconciler
from semipd_operator.settings import Settings
from semipd_operator.status import AgentView
from semipd_operator.status_writer import StatusWriter


class Fixture:
    """A reconciler whose agents are never asked: their watches are only counted."""

    def __init__(
        self,
        *objects: Any,
        kube: StandIn | None = None,
        asked: Any = None,
        informer: Informer | None = None,
        settings: Settings = SETTINGS,
        unknown: tuple[str, ...] = (),
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`asked`: what it has of `kube`, if not all of it."""
        self.kube = kube or StandIn(*(objects or (new_service(),)), unknown=unknown)
        requests: Any = asked or self.kube
        told = informer or self.kube.informer
        self.watches: dict[Any, Any] = {}
        poller: Any = AgentPoller.__new__(AgentPoller)
        poller.watch = self.watches.__setitem__
        poller.forget = lambda key: self.watches.pop(key, None)
        poller.views = lambda key: self.views
        self.views: dict[str, AgentView] = {}
        self.now = 0.0
        self.statuses = StatusWriter(
            requests, told, lambda key: self.views, timedelta(seconds=15), "test", leads, lambda: self.now
        )
        self.reconciler = Reconciler(requests, settings, told, poller, self.statuses, lambda: self.now)

    def change(self, **spec: Any) -> None:
        """As a user's apply."""
        old = self.kube.service()["metadata"]
        changed = new_service(**spec)
        changed["metadata"]["generation"] = old["generation"] + 1
        self.kube.put(changed)

    async def reconcile(self) -> Next:
        return await self.reconciler.reconcile(KEY)


def ready_pod(name: str = "p") -> dict[str, Any]:
    labels = {"semipd.io/service": KEY.name, "pod-template-hash": "7d9c"}
    meta = {"name": name, "namespace": KEY.namespace, "uid": name, "labels": labels}
    return {"kind": "Pod", "metadata": meta, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
