"""Which services another operator looks after. Two that write the same objects would undo each other's work for ever.

An operator writes its name on each service's ConfigMap. It leaves alone what bears another's name while that one lives:
its Lease says so. Where no Lease can be seen, the one who finds its own name overwritten yields, for longer each time.
A name is written over another only in the version that was judged (see `children`): so never over one that came since.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from semipd_operator.answers import ApiRefused, Object
from semipd_operator.settings import CLAIM_ANNOTATION, LEASE_API, LeaseName
from semipd_operator.workqueue import Key, back_off

log = logging.getLogger(__name__)

DEAD_AFTER = timedelta(seconds=60)
"""Since the last renewal of a Lease, by the API server's clock: four times its length."""
_TELL_SECONDS = 3000.0
"""Events are kept for an hour."""
_FIRST_YIELD_SECONDS, _LONGEST_YIELD_SECONDS = 60.0, 3600.0


class Leases(Protocol):
    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None: ...


def own_name(lease: LeaseName | None, key: bytes) -> str:
    """``NAMESPACE/LEASE``; without a Lease what tells keys apart, which is what two operators would quarrel about."""
    return str(lease) if lease else f"key-{hashlib.sha256(b'semipd-operator ' + key).hexdigest()[:8]}"


@dataclass
class _Quarrel:
    times: int = 0
    until: float = 0.0


class Claims:
    def __init__(
        self,
        leases: Leases,
        own: str,
        clock: Callable[[], float] = time.monotonic,
        ahead: Callable[[], timedelta] = timedelta,
    ) -> None:
        """`ahead`: how far the API server's clock is ahead of ours."""
        self._leases, self._own, self._clock, self._ahead = leases, own, clock, ahead
        self._held: set[Key] = set()
        """Services whose ConfigMap bears our name, or bore none when we were about to write ours."""
        self._quarrels: dict[Key, _Quarrel] = {}
        self._told: dict[Key, tuple[str, float]] = {}

    async def other(self, key: Key, config_map: Object | None) -> str:
        """The name of another operator that looks after the service; empty: it is ours to. Raises `ApiRefused`."""
        annotations = ((config_map or {}).get("metadata") or {}).get("annotations") or {}
        theirs = str(annotations.get(CLAIM_ANNOTATION, ""))
        if not theirs or theirs == self._own:
            self.hold(key)
            return ""
        quarrel = self._quarrels.setdefault(key, _Quarrel())
        if key in self._held:  # it was ours, and somebody took it: they live
            self._held.discard(key)
            seconds = back_off(_FIRST_YIELD_SECONDS, quarrel.times, _LONGEST_YIELD_SECONDS)
            quarrel.times, quarrel.until = quarrel.times + 1, self._clock() + seconds
        lives = await self._lives(theirs)
        if lives or (lives is None and self._clock() < quarrel.until):
            return theirs
        log.info("%s: to be taken over from operator %s, which is gone or cannot be seen", key, theirs)
        return ""

    def hold(self, key: Key) -> None:
        """Our name is on it. That it is to be there is not enough: the other one may come first."""
        self._held.add(key)

    def news(self, key: Key, other: str) -> bool:
        """Whether it should be told (again)."""
        before, self._told[key] = self._told.get(key), (other, self._clock())
        if before is None or before[0] != other or self._clock() - before[1] >= _TELL_SECONDS:
            return True
        self._told[key] = before
        return False

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._held.discard(key)
        self._quarrels.pop(key, None)
        self._told.pop(key, None)

    async def _lives(self, name: str) -> bool | None:
        """None: that cannot be seen."""
        namespace, slash, lease = name.partition("/")
        if not slash:
            return None
        try:
            live = await self._leases.get(LEASE_API, "Lease", namespace, lease)
        except ApiRefused as refused:
            if refused.status != 403:  # a server in trouble says nothing about the other one
                raise
            return None
        spec = (live or {}).get("spec") or {}
        if not spec.get("renewTime"):  # an empty holder is no proof: one replica may just hand over to the next
            return False
        # The API server stamps each write, and so each renewal; renewTime is by the clock of the other one's node.
        stamps = [entry["time"] for entry in (live or {})["metadata"].get("managedFields") or [] if entry.get("time")]
        renewed = max(map(datetime.fromisoformat, stamps or [spec["renewTime"]]))
        return datetime.now(UTC) + self._ahead() - renewed < DEAD_AFTER
