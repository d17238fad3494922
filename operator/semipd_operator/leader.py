"""Of several replicas one leads: whoever holds the Lease. It knows nothing of what a leader does.

The rules are client-go's: a holder renews every two seconds and gives up when that has failed for ten; others wait
until they have seen the same record for fifteen seconds *by their own clock*, so clocks of different nodes are never
compared. That clock goes on while the machine is suspended, as the others' do. A replica that stops hands the Lease
back, so the next one need not wait. (`kubernetes.aio.leaderelection` does not hand it back, ends on a broken
connection, and wants the right to create Leases; here the chart makes it.)
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from semipd_operator.answers import ApiAway, ApiRefused, Object
from semipd_operator.settings import LEASE_API, LeaseName

log = logging.getLogger(__name__)

DURATION_SECONDS = 15
"""An unchanged record of this age belongs to nobody any more."""
RENEW_SECONDS = 10.0
"""A leader that could not renew for this long stops: five seconds before anybody else may start."""
RETRY_SECONDS = 2.0
_STOP_SECONDS = 4.0


def seconds() -> float:
    """Since the machine's start, suspended or not; monotonic time stands still with it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeadershipLost(Exception):
    """A term did not end in time after the Lease was lost; the process must."""


class Leases(Protocol):
    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None: ...
    async def merge(self, api_version: str, kind: str, namespace: str, name: str, changes: Object) -> Object: ...


class Election:
    """One replica's part in it."""

    def __init__(self, leases: Leases, lease: LeaseName, replica: str, clock: Callable[[], float] = seconds) -> None:
        # A process of the same pod that came before is another one: what it held must run out.
        self.identity = f"{replica}_{uuid.uuid4().hex[:8]}"
        self.leading = False
        self._leases, self._lease, self._clock = leases, lease, clock
        self._record: Any = None
        self._seen_at = self._renewed = 0.0
        self._complaint = ""
        self._idle = True
        """No work of a leader goes on: the Lease may be another's."""

    def holds(self) -> bool:
        """Whether the Lease is surely ours: a process that stood still learns only later that another leads by now."""
        return self.leading and self._clock() - self._renewed < RENEW_SECONDS

    def starting(self) -> str:
        """Empty once this replica has seen the Lease: a follower stands by, and that is all it has to do."""
        return "" if self._record is not None else f"starting: {self._complaint or 'no word of the Lease yet'}"

    def complaint(self) -> str:
        return ""

    async def run(self, term: Callable[[], Awaitable[None]]) -> None:
        """Runs `term` whenever this replica leads; returns when a term ends by itself, raises what it raises."""
        try:
            while True:
                await self._acquire()
                log.info("leading by Lease %s as %s", self._lease, self.identity)
                self.leading = True
                try:
                    if await self._lead(term):
                        return
                finally:
                    self.leading = False
                log.warning("the Lease %s is lost: standing by", self._lease)
        finally:
            await self._release()

    async def _acquire(self) -> None:
        told = False
        self._renewed = self._clock()
        while not await self._hold():
            if not told and self._record is not None:
                log.info("standing by: %s leads by Lease %s", self._record[0], self._lease)
                told = True
            await asyncio.sleep(RETRY_SECONDS)
            self._renewed = self._clock()

    async def _lead(self, term: Callable[[], Awaitable[None]]) -> bool:
        """Whether the term ended by itself."""
        task = asyncio.ensure_future(term())
        try:
            while (left := self._renewed + RENEW_SECONDS - self._clock()) > 0:
                done, _ = await asyncio.wait({task}, timeout=min(left, RETRY_SECONDS))
                if done:
                    task.result()
                    return True
                asked = self._clock()
                if await self._hold(self._renewed + RENEW_SECONDS - asked):
                    self._renewed = asked
                elif self._record is not None and self._record[0] != self.identity:
                    break  # someone else has it already
            return False
        finally:
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=_STOP_SECONDS)
            if not done:
                self._idle = False  # whoever is next waits until the Lease has run out
                raise LeadershipLost("the work of a leader did not end in time")

    async def _hold(self, seconds: float = RENEW_SECONDS / 2) -> bool:
        """Takes or renews the Lease within `seconds`; whether it is ours now."""
        try:
            async with asyncio.timeout(seconds):  # Python 3.11's wait_for may swallow a cancellation
                return await self._try()
        except ApiRefused as refused:
            complaint = "" if refused.status == 409 else str(refused)  # 409: another replica was quicker
        except ApiAway as away:
            complaint = str(away)
        except Exception as error:
            complaint = f"{type(error).__name__}: {error}"
        if complaint and complaint != self._complaint:
            log.warning("Lease %s: %s", self._lease, complaint)
        self._complaint = complaint
        return False

    async def _try(self) -> bool:
        live = await self._leases.get(LEASE_API, "Lease", self._lease.namespace, self._lease.name)
        if live is None:
            raise ApiRefused(404, f"Lease {self._lease} does not exist: the chart makes it")
        self._complaint = ""
        spec = live.get("spec") or {}
        record = (spec.get("holderIdentity") or "", spec.get("renewTime"), spec.get("leaseTransitions") or 0)
        if record != self._record:
            self._record, self._seen_at = record, self._clock()
        holder, _, transitions = record
        ours = holder == self.identity
        if holder and not ours and self._clock() - self._seen_at < (spec.get("leaseDurationSeconds") or 0):
            return False
        now = _stamp()
        changes: Object = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION_SECONDS,
            "renewTime": now,
            "leaseTransitions": transitions if ours else transitions + 1,
        }
        if not ours:
            changes["acquireTime"] = now
        await self._write(live, changes)
        self._record, self._seen_at = (self.identity, now, changes["leaseTransitions"]), self._clock()
        return True

    async def _release(self) -> None:
        """A courtesy: without it the next leader waits for the Lease to run out. Whose it is the API server knows: a
        write of ours whose answer was lost made it ours, too."""
        if not self._idle:
            return
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                live = await self._leases.get(LEASE_API, "Lease", self._lease.namespace, self._lease.name)
                if live is not None and (live.get("spec") or {}).get("holderIdentity") == self.identity:
                    await self._write(live, {"holderIdentity": None, "renewTime": _stamp()})
        except Exception as error:
            log.warning("Lease %s is not handed back: %s", self._lease, error)

    async def _write(self, live: Object, spec: Object) -> None:
        # The version: of two replicas at once only one may write.
        changes = {"metadata": {"resourceVersion": live["metadata"]["resourceVersion"]}, "spec": spec}
        await self._leases.merge(LEASE_API, "Lease", self._lease.namespace, self._lease.name, changes)


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
