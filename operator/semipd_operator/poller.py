"""Asks the agents of all services, each pod by itself: one that does not answer delays nobody but itself.

A pod that answered has a lane among those that answer; one that did not waits for a turn among the silent, less and
less often. So however many are silent, the others keep their period. It knows nothing of the API server; who wants to
know what a service's agents say is told by the callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from semipd_agent.contract import AgentConfig
from semipd_operator.agents import AgentClient, AgentError, AgentSilent
from semipd_operator.metrics import AGENT_POLLS
from semipd_operator.status.observed import AgentView, PodView
from semipd_operator.workqueue import Key, back_off

log = logging.getLogger(__name__)

MOVING_SECONDS = 0.5
"""Period of a pod with a split on the move: its end is shown at once."""
BEAT_SECONDS, PAUSE_SECONDS = 1.0, 5.0
"""So often this process looks at the clock, and so long it takes only if it stands still: stopped, starved, its machine
suspended."""
LONGEST_SILENCE_SECONDS = 15.0
"""A silent pod is asked at least this often."""
SPEAKING_AT_ONCE = 64
SILENT_AT_ONCE = 64
POLLS_PER_SECOND = 200.0
"""What one process does without falling behind, polls and judgements alike; with more pods the period grows."""


@dataclass(frozen=True)
class Watch:
    """Whom to ask for one service, and what they should have."""

    pods: tuple[PodView, ...]
    tokens: tuple[str, ...]
    """Of the current key first."""
    config: AgentConfig | None
    """None: leave the pods what they have."""


@dataclass
class _Service:
    watch: Watch
    told: asyncio.Event
    """Something was heard, or should have been."""
    task: asyncio.Task[None]


@dataclass
class _Pod:
    key: Key
    pod: PodView
    wake: asyncio.Event
    task: asyncio.Task[None]
    view: AgentView
    failures: int = 0


class AgentPoller:
    def __init__(
        self,
        client: AgentClient,
        period_seconds: float,
        on_round: Callable[[Key], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: by which views grow old, so of the day. A monotonic one counts no time in which a machine slept."""
        self._client, self._period, self._on_round = client, period_seconds, on_round
        self._clock, self._turned = clock, clock()
        self._beat: asyncio.Task[None] | None = None
        self._services: dict[Key, _Service] = {}
        self._pods: dict[str, _Pod] = {}
        """By uid."""
        self._speaking = asyncio.Semaphore(SPEAKING_AT_ONCE)
        self._silent = asyncio.Semaphore(SILENT_AT_ONCE)

    def watch(self, key: Key, watch: Watch) -> None:
        """Starts or changes the watch of a service. A change is acted on at once, not with the next round."""
        self._turn()
        self._beat = self._beat or asyncio.create_task(self._watch_clock(), name="clock")
        service = self._services.get(key)
        if service is None:
            told = asyncio.Event()
            task = asyncio.create_task(self._tell(key, told), name=f"status {key}")
            service = self._services[key] = _Service(watch, told, task)
            told.set()
        changed = (service.watch.tokens, service.watch.config) != (watch.tokens, watch.config)
        service.watch = watch
        askable = {pod.uid: pod for pod in watch.pods if pod.ip and not pod.terminating and pod.started}
        for uid in [uid for uid, asked in self._pods.items() if asked.key == key and uid not in askable]:
            self._pods.pop(uid).task.cancel()
        for uid, pod in askable.items():
            if (asked := self._pods.get(uid)) is None:
                wake = asyncio.Event()
                task = asyncio.create_task(self._ask(uid, wake), name=f"agent {uid}")
                self._pods[uid] = _Pod(key, pod, wake, task, AgentView(asked_since=datetime.now(UTC)))
            elif changed or asked.pod != pod:
                asked.pod, asked.failures = pod, 0
                asked.wake.set()

    def forget(self, key: Key) -> None:
        if service := self._services.pop(key, None):
            service.task.cancel()
        for uid in [uid for uid, asked in self._pods.items() if asked.key == key]:
            self._pods.pop(uid).task.cancel()

    def views(self, key: Key) -> Mapping[str, AgentView]:
        """By the pod's uid."""
        self._turn()
        service = self._services.get(key)
        pods = service.watch.pods if service else ()
        return {pod.uid: self._pods[pod.uid].view for pod in pods if pod.uid in self._pods}

    def _turn(self) -> None:
        """Before anything is judged. A pause of ours is none of the agents' silence: what they said last grows older
        from now on, and by then they have been asked. So it does where the clock was set back: else it would stay young
        for as long as that."""
        now = self._clock()
        gap, self._turned = now - self._turned, now
        if not 0 <= gap <= PAUSE_SECONDS:
            for one in self._pods.values():
                one.view = one.view.slept(gap, datetime.now(UTC))

    async def _watch_clock(self) -> None:
        """Aside of the rounds: one that waits for a slow API server is no pause, for the agents are asked meanwhile."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._turn()

    async def close(self) -> None:
        tasks = [*(one.task for one in self._services.values()), *(one.task for one in self._pods.values())]
        if self._beat is not None:
            self._beat.cancel()
            tasks.append(self._beat)
        for key in list(self._services):
            self.forget(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, key: Key, told: asyncio.Event) -> None:
        """One round after what was heard since the last; also where nobody speaks: judgements grow old."""
        while True:
            await _wait(told, self._spread(len(self._services)))
            told.clear()
            try:
                await self._on_round(key)
            except Exception:  # the next round tries again; one service's trouble ends no task
                log.exception("status of %s", key)

    async def _ask(self, uid: str, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            one = self._pods[uid]
            # One that was never heard: the kubelet has asked it already.
            speaks = not one.failures and (one.view.report is not None or one.pod.ready)
            async with self._speaking if speaks else self._silent:
                watch = self._services[one.key].watch
                silent = await self._look(one, watch)
            one.failures = one.failures + 1 if silent else 0
            self._services[one.key].told.set()
            await _wait(wake, self._pause(one))

    def _spread(self, count: int) -> float:
        """The period, or as much more as so many need to keep to the rate of one process."""
        return max(self._period, count / POLLS_PER_SECOND)

    def _pause(self, one: _Pod) -> float:
        period = self._spread(len(self._pods))
        if one.failures:
            return max(period, back_off(self._period, one.failures - 1, LONGEST_SILENCE_SECONDS))
        return min(self._period, MOVING_SECONDS) if one.view.adjusting_since else period

    async def _look(self, one: _Pod, watch: Watch) -> bool:
        """Sees to what is known of the pod; whether it did not answer at all."""
        pod = one.pod
        try:
            report = await self._client.look(pod.ip, pod.uid, watch.tokens, watch.config)
            AGENT_POLLS.labels("answered").inc()
            self._turn()  # what was known moves with the clock, and what comes now does not
            one.view = one.view.heard(report, datetime.now(UTC), watch.config)
            return False
        except AgentError as error:
            AGENT_POLLS.labels("failed").inc()
            one.view = one.view.failed(str(error))
            return isinstance(error, AgentSilent)
        except Exception:  # whatever it was, the pod is asked again, and less often
            AGENT_POLLS.labels("failed").inc()
            log.exception("agent of pod %s", pod.name)
            one.view = one.view.failed("the agent's answer cannot be dealt with; the operator's log says why")
            return True


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # Python 3.11's wait_for may swallow a cancellation
            await event.wait()
