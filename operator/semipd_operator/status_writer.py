"""Writes statuses: the only place that does. Keeps to the write budget, then tells the events of what changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from semipd_operator.answers import ApiAway, ApiRefused
from semipd_operator.api.v1alpha1.resource import KIND, SemiPDService, dump_status, parse_status
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.informer import Informer
from semipd_operator.kube import Kube
from semipd_operator.metrics import STATUS_WRITES
from semipd_operator.reasons import ConditionType, EventReason
from semipd_operator.skew import OlderCRD
from semipd_operator.status import AgentView, Observed, summarise
from semipd_operator.status.arrivals import Arrivals
from semipd_operator.status.disruption import Losses
from semipd_operator.status.events import Event, event_object, events
from semipd_operator.status.partition import FIRST_WORD
from semipd_operator.status.refusals import admission
from semipd_operator.status.scaling import fullness, start_seconds, told_arrivals, told_rate
from semipd_operator.status.summarise import write_due
from semipd_operator.workqueue import Key, back_off

log = logging.getLogger(__name__)

_FIRST_BACK_OFF_SECONDS, _LONGEST_BACK_OFF_SECONDS = 2.0, 60.0
"""After a write that was refused; doubled each time."""
_UPGRADE_CRD = (
    "bring the CRD to the operator's release: kubectl apply --server-side --force-conflicts -f crds/ of that release, "
    "or helm upgrade with crds.enabled"
)
_EVENT_SECONDS = 60.0
"""One event of a reason per service in this time; PartitionChanged is limited by the dwell time of the splits."""


@dataclass
class _Entry:
    seen: Observed
    """Without the agents and the status as it stands: they are asked for when the status is made."""
    shown: SemiPDServiceStatus = field(default_factory=SemiPDServiceStatus)
    live: Any = None
    """What the API server made of `shown`: an older CRD may have dropped some of it."""
    last_write: datetime | None = None
    failures: int = 0
    not_before: float = 0.0
    """When to write again, by the writer's clock, after so many refusals."""
    told: dict[EventReason, float] = field(default_factory=dict)
    losses: Losses = field(default_factory=Losses)
    arrivals: Arrivals = field(default_factory=Arrivals)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class StatusWriter:
    def __init__(
        self,
        kube: Kube,
        informer: Informer,
        views: Callable[[Key], Mapping[str, AgentView]],
        slo_period: timedelta,
        instance: str,
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`leads`: whether this process may write. What one wrote that another has taken over from would stand beside
        the other's, and be older."""
        self._kube, self._informer, self._views = kube, informer, views
        self._slo_period, self._instance, self._leads = slo_period, instance, leads
        self._clock = clock
        self._denied: dict[Key, str] = {}
        """The uids of services whose status is refused, and that have been told so."""
        self._older = OlderCRD(clock)
        self._cut: dict[Key, str] = {}
        """The uids of services whose status, as last written, lacks what the CRD does not declare."""
        self._entries: dict[Key, _Entry] = {}

    def observe(self, key: Key, seen: Observed) -> None:
        """What the API server shows of a service and its children."""
        entry = self._entries.get(key)
        if entry is None or entry.seen.service.metadata.uid != seen.service.metadata.uid:
            # One that ended keeps its condition for as long as it is there: who led before has told of it.
            ended = (pod.uid for pod in seen.pods if pod.ended_at is not None)
            self._entries[key] = _Entry(seen, losses=Losses(ended))
        else:
            entry.seen = seen

    def forget(self, key: Key) -> None:
        """Nothing more is shown of it for now."""
        self._entries.pop(key, None)

    def gone(self, key: Key) -> None:
        """There is no such service any more."""
        self.forget(key)
        self._denied.pop(key, None)
        self._cut.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)

    def scales_by_our_metrics(self) -> bool:
        """Whether some service scales by a HorizontalPodAutoscaler, which asks the external metrics API."""
        found = (entry.seen.service.spec.autoscaling for entry in self._entries.values())
        return any(scaling is not None and scaling.keda is None for scaling in found)

    def observed(self) -> tuple[Key, ...]:
        return tuple(self._entries)

    def fullness(self, namespace: str) -> dict[str, float]:
        """How full the services of a namespace are, by name, in pods at the edge of their SLO; without the unknown."""
        now = datetime.now(UTC)
        found = {
            key.name: fullness(self._as_of(now, key, entry))
            for key, entry in self._entries.items()
            if key.namespace == namespace
        }
        return {name: value for name, value in found.items() if value is not None}

    def _as_of(self, now: datetime, key: Key, entry: _Entry) -> Observed:
        """With what the agents say now, and what is expected of the load by what they have said."""
        seen = replace(entry.seen, now=now, agents=dict(self._views(key)))
        entry.arrivals = entry.arrivals.advanced(now.timestamp(), told_arrivals(seen))
        return replace(seen, growth=entry.arrivals.growth(now.timestamp(), start_seconds(seen), told_rate(seen)))

    async def publish(self, key: Key) -> None:
        """Writes the status if it is due."""
        entry = self._entries.get(key)
        if entry is None:
            return
        async with entry.lock:
            obj = self._informer.get(KIND, *key)
            if self._entries.get(key) is not entry or obj is None:
                return
            live = obj.get("status")
            if entry.live is None or live != entry.live:  # the first look, or someone else's edit: it is drift
                entry.shown, entry.live = parse_status(obj), live
            if not self._leads():
                return
            now = datetime.now(UTC)
            seen = replace(self._as_of(now, key, entry), previous=entry.shown)
            await self._tell_losses(entry)
            if self._clock() < entry.not_before:
                return
            if entry.last_write is None and _unmet(seen):
                return
            status = summarise(seen)
            cut = self._cut.get(key) == seen.service.metadata.uid
            whole = cut and not self._older.fields  # the CRD may be another by now
            due = write_due(entry.shown, status, now=now, last_write=entry.last_write, slo_period=self._slo_period)
            if not (due or whole):
                return
            try:
                entry.live = await self.write(seen.service, status)
            except ApiRefused as refused:
                if _overtaken(refused):  # gone, or another one of the same name: the watch will tell
                    return
                delay = back_off(_FIRST_BACK_OFF_SECONDS, entry.failures, _LONGEST_BACK_OFF_SECONDS)
                entry.failures, entry.not_before = entry.failures + 1, self._clock() + delay
                raise
            entry.failures = 0
            before, entry.shown, entry.last_write = entry.shown, status, now
            await self._tell(entry, events(before, status))

    async def _tell_losses(self, entry: _Entry) -> None:
        if said := entry.losses.tell(entry.seen.pods, self._clock()):
            await self.tell(entry.seen.service, Event(EventReason.POD_DISRUPTED, said))

    async def write(self, service: SemiPDService, status: SemiPDServiceStatus) -> Any:
        """The status as the API server took it. Raises `ApiRefused`, `ApiAway`.

        The informer is told before and after, so that the watch's echo is no news.
        """
        if not self._leads():
            raise ApiAway("the Lease is not renewed, and a status is its holder's to write")
        meta, whole = service.metadata, dump_status(status)
        afresh = False
        while True:
            body, lacking = self._older.declared(whole)
            self._informer.writes_status(meta.namespace, meta.name, body)
            try:
                written = await self._kube.apply_status(service, body)
                break
            except ApiRefused as refused:
                if self._older.learn(refused):  # each time of another field
                    continue
                if lacking and refused.status == 422 and not afresh:  # a newer CRD may want what the older one lacked
                    afresh = True
                    self._older.forget()
                    continue
                await self._say_denied(service, refused)
                raise
        self._denied.pop(_key(service), None)
        self._informer.told(KIND, written)
        STATUS_WRITES.inc()
        await self._say_older(service, lacking)
        return written.get("status")

    async def _say_older(self, service: SemiPDService, lacking: tuple[str, ...]) -> None:
        """Once, until it is whole again."""
        key, uid = _key(service), service.metadata.uid
        if lacking and self._cut.get(key) != uid:
            message = (
                f"the installed CRD is of an older release than the operator and has no {', '.join(lacking)}; "
                f"the rest of the status is written. Remedy: {_UPGRADE_CRD}."
            )
            log.warning("%s: %s", key, message)
            await self.tell(service, Event(EventReason.CRD_OUTDATED, message))
        if lacking:
            self._cut[key] = uid
        else:
            self._cut.pop(key, None)

    async def _say_denied(self, service: SemiPDService, refused: ApiRefused) -> None:
        """Once, by the only way that is left: what stands in the status is old, and looks as if it were not."""
        lasting = admission(str(refused)) is not None or not (_overtaken(refused) or refused.for_now)
        key, uid = _key(service), service.metadata.uid
        if lasting and self._denied.get(key) != uid:
            self._denied[key] = uid
            what = "have the policy, webhook or role that the words name let the operator write semipdservices/status"
            if refused.mistyped or (refused.status == 422 and admission(str(refused)) is None):
                what = _UPGRADE_CRD
            message = f"the status cannot be written, and what it shows is old: {refused}. Remedy: {what}."
            await self.tell(service, Event(EventReason.STATUS_REFUSED, message))

    async def _tell(self, entry: _Entry, found: list[Event]) -> None:
        for event in found:
            last = entry.told.get(event.reason)
            limited = event.reason is not EventReason.PARTITION_CHANGED
            if limited and last is not None and self._clock() - last < _EVENT_SECONDS:
                continue
            entry.told[event.reason] = self._clock()
            await self.tell(entry.seen.service, event)

    async def tell(self, service: SemiPDService, event: Event) -> None:
        told = event_object(service, event, self._instance, datetime.now(UTC))
        try:
            await self._kube.create("v1", "Event", service.metadata.namespace, told)
        except (ApiRefused, ApiAway) as refused:  # an event is a courtesy; a terminating namespace takes none
            log.debug("event %s: %s", event.reason, refused)


def _key(service: SemiPDService) -> Key:
    return Key(service.metadata.namespace, service.metadata.name)


def _overtaken(refused: ApiRefused) -> bool:
    """It is gone, or another one; a policy answers as it likes, with 409, too."""
    return refused.status in (404, 409) and admission(str(refused)) is None


def _unmet(seen: Observed) -> bool:
    """A process that has just begun to lead, and has not heard every agent yet: what the one before it said of this
    generation says more, and taking it back for a moment would be told as an edge."""
    ready = seen.previous.condition(ConditionType.READY)
    if ready is None or ready.observed_generation != seen.service.metadata.generation:
        return False
    unheard = (view.asked_since for view in seen.agents.values() if view.report is None)
    return any(since is not None and seen.now - since <= FIRST_WORD for since in unheard)
