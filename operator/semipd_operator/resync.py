"""Lists everything again and again: what a lost event or a bug left behind is mended within a period.

Each kind of each namespace by itself: what cannot be listed is tried again sooner, and has nobody else listed sooner,
so that between two lists of a kind its watch has a whole period. It tells whoever counts, and knows no meaning of the
objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection

from semipd_operator.answers import ApiRefused, Object
from semipd_operator.api.v1alpha1.resource import KIND
from semipd_operator.health import Health, WatchFreshness
from semipd_operator.informer import CHILDREN, KINDS, Informer
from semipd_operator.kube import Kube
from semipd_operator.render import HPA, OPTIONAL_KINDS
from semipd_operator.render.names import MANAGED_SELECTOR, managed
from semipd_operator.rights import Rights
from semipd_operator.workqueue import Key, WorkQueue

log = logging.getLogger(__name__)

RELIST_SECONDS = (2.0, 4.0, 8.0, 15.0)
"""After a list that failed, once and again: a cluster in trouble is not asked all the time."""
_OPTIONAL = {kind.kind for kind in OPTIONAL_KINDS}
_AUTOSCALER_SECONDS = 15.0
"""An autoscaler's own period: before, a foreign one has not scaled anything either."""


class Resync:
    def __init__(
        self,
        kube: Kube,
        namespaces: Collection[str],
        period_seconds: float,
        informer: Informer,
        watches: WatchFreshness,
        rights: Rights,
        health: Health,
        queue: WorkQueue,
        on_gone: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`namespaces`: those watched; none is all of them. `on_gone`: the API server knows no services any more."""
        self._kube, self._namespaces, self._period = kube, tuple(namespaces) or ("",), period_seconds
        self._informer, self._watches, self._rights = informer, watches, rights
        self._health, self._queue, self._on_gone = health, queue, on_gone
        self._clock, self._sleep = clock, sleep
        self.rounds = 0
        """How often everything that may be listed was."""

    async def run(self) -> None:
        """Until cancelled."""
        due = {(kind, namespace): self._clock() for kind in KINDS for namespace in self._namespaces}
        failures, listed = Counter[tuple[str, str]](), set[tuple[str, str]]()
        while True:
            for one in [one for one, at in due.items() if at <= self._clock()]:
                kind, namespace = one
                # Of a namespace that is left out only the services are asked for: what belongs to them follows.
                well = (kind != KIND and self._out(namespace)) or await self._try(kind, namespace)
                if well or self._out(namespace):
                    listed.add(one)
                soon = not well or (kind == KIND and self._out(namespace))
                failures[one] = failures[one] + 1 if soon else 0
                pause = RELIST_SECONDS[min(failures[one], len(RELIST_SECONDS)) - 1] if soon else self._period
                due[one] = self._clock() + pause
            if len(listed) == len(due):
                listed.clear()
                self._health.listed()
                self.rounds += 1
            await self._sleep(max(0.0, min(due.values()) - self._clock()))

    async def follow_autoscalers(self) -> None:
        """The watch tells of ours alone, as everybody's status is written all the time. Until cancelled."""
        while True:
            await self._sleep(_AUTOSCALER_SECONDS)
            for namespace in itertools.filterfalse(self._out, self._namespaces):
                with contextlib.suppress(Exception):  # the resync meets it, too, and says it
                    await self._list(HPA.kind, namespace)

    def _out(self, namespace: str) -> bool:
        return namespace in self._informer.left_out

    async def _try(self, kind: str, namespace: str) -> bool:
        try:
            await self._list(kind, namespace)
            return True
        except Exception as error:  # it is tried again
            if not (isinstance(error, ApiRefused) and error.status == 403):  # of that `rights` tells, once
                log.warning("resync: %s: %s", kind, error)
            return False
        finally:
            self._health.came_round()

    async def _list(self, kind: str, namespace: str) -> None:
        try:
            found, version = await self._all(kind, namespace)
        except ApiRefused as refused:
            self._rights.answered(kind, "list", namespace, refused.status)
            if refused.status == 404 and kind == KIND:
                self._on_gone()
            needed = kind == KIND or (kind not in _OPTIONAL and not self._out(namespace))
            if refused.status == 403 and needed and self._informer.leave_out(kind, namespace):
                return
            if refused.status != 403 or kind not in _OPTIONAL:
                raise
            for key in self._informer.refused(kind, str(refused), namespace):
                self._queue.add(key)
            return
        self._rights.answered(kind, "list", namespace, 200)
        if kind == KIND and self._out(namespace):
            for child in CHILDREN:  # first: an object that is not known may well exist
                await self._list(child, namespace)
            self._informer.take_in(namespace)
            # From here on its watch is heeded; what that told before is in no list but one that is read by now.
            found, version = await self._all(kind, namespace, newest=True)
        self._take(kind, namespace, found, version)

    async def _all(self, kind: str, namespace: str, *, newest: bool = False) -> tuple[list[Object], int]:
        # All autoscalers, as others' may scale our Deployments; the watch tells of ours alone.
        selector = MANAGED_SELECTOR if kind in CHILDREN and kind != HPA.kind else ""
        return await self._kube.list(KINDS[kind][0], kind, namespace, selector, newest=newest)

    def _take(self, kind: str, namespace: str, found: list[Object], version: int) -> None:
        news: set[Key] = set()
        if kind == HPA.kind:
            news = {key for key in self._informer.autoscalers(found, namespace) if self._informer.get(KIND, *key)}
            found = [obj for obj in found if managed(obj)]
        for key in news | self._informer.listed(kind, found, version, namespace):
            self._queue.add(key)
        if kind == KIND:
            told = ((obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]) for obj in found)
            self._watches.listed(told, namespace)
            for obj in found:
                self._queue.add(Key(obj["metadata"]["namespace"], obj["metadata"]["name"]))
