"""Watches the agents of all services: one task for each service, its pods asked side by side.

A pod that does not answer costs its own service one time-out, and no other service anything. It knows nothing of the
API server; who wants to know of a round is told by the callback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from semipd_agent.contract import AgentConfig, StatusReport
from semipd_operator.agents import AgentClient, AgentError
from semipd_operator.metrics import AGENT_POLLS
from semipd_operator.status.observed import AgentView, PodView
from semipd_operator.workqueue import Key

log = logging.getLogger(__name__)

_MOVING_SECONDS = 0.5
"""Period of a service with a split on the move: its end is shown at once."""


@dataclass(frozen=True)
class Watch:
    """Whom to ask for one service, and what they should have."""

    pods: tuple[PodView, ...]
    token: str
    config: AgentConfig | None
    """None: leave the pods what they have."""


class Fleet:
    def __init__(self, client: AgentClient, period_seconds: float, on_round: Callable[[Key], Awaitable[None]]) -> None:
        self._client = client
        self._period = period_seconds
        self._on_round = on_round
        self._watches: dict[Key, Watch] = {}
        self._views: dict[Key, dict[str, AgentView]] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._wake: dict[Key, asyncio.Event] = {}

    def watch(self, key: Key, watch: Watch) -> None:
        """Starts or changes the watch of a service. A change is acted on at once, not with the next round."""
        changed = self._watches.get(key) != watch
        self._watches[key] = watch
        if key not in self._tasks:
            self._wake[key] = asyncio.Event()
            self._tasks[key] = asyncio.create_task(self._run(key), name=f"agents {key}")
        elif changed:
            self._wake[key].set()

    def forget(self, key: Key) -> None:
        self._watches.pop(key, None)
        self._views.pop(key, None)
        self._wake.pop(key, None)
        if task := self._tasks.pop(key, None):
            task.cancel()

    def views(self, key: Key) -> Mapping[str, AgentView]:
        """By the pod's uid."""
        return self._views.get(key, {})

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for key in list(self._tasks):
            self.forget(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: Key) -> None:
        wake = self._wake[key]
        while True:
            wake.clear()
            watch = self._watches[key]
            before = self._views.get(key, {})
            askable = [pod for pod in watch.pods if pod.ip and not pod.terminating and pod.started]
            looks = await asyncio.gather(*(self._look(pod, watch, before.get(pod.uid, AgentView())) for pod in askable))
            self._views[key] = {pod.uid: view for pod, view in zip(askable, looks, strict=True)}
            try:
                await self._on_round(key)
            except Exception:  # the next round tries again; one service's trouble ends no task
                log.exception("status of %s", key)
            moving = any(view.adjusting_since for view in self._views.get(key, {}).values())
            try:
                await asyncio.wait_for(wake.wait(), min(self._period, _MOVING_SECONDS) if moving else self._period)
            except TimeoutError:
                continue

    async def _look(self, pod: PodView, watch: Watch, before: AgentView) -> AgentView:
        try:
            report: StatusReport = await self._client.look(pod.ip, pod.uid, watch.token, watch.config)
        except (AgentError, ValidationError) as error:
            AGENT_POLLS.labels("failed").inc()
            return before.failed(str(error) if isinstance(error, AgentError) else "the agent's answer is no health")
        AGENT_POLLS.labels("answered").inc()
        return before.heard(report, datetime.now(UTC), watch.config)
