"""Is the operator deaf? It is, once a reconcile never ends, the resync stops, or the watches miss what lists show."""

from __future__ import annotations

import time
from collections.abc import Iterable

from semipd_operator.workqueue import WorkQueue


class Hearing:
    """Compares what a list shows with what the watch told: a change that a whole resync period missed is lost."""

    def __init__(self) -> None:
        self._heard: dict[str, int] = {}
        self._listed: dict[str, int] = {}
        self.missed: str = ""
        """A uid that the watch missed; empty while it hears."""

    def heard(self, uid: str, version: str) -> None:
        """The watch told of an object."""
        self._heard[uid] = max(self._heard.get(uid, 0), int(version))

    def gone(self, uid: str) -> None:
        self._heard.pop(uid, None)

    def listed(self, objects: Iterable[tuple[str, str]]) -> None:
        """(uid, resource version) of every object, once in each resync period."""
        now = {uid: int(version) for uid, version in objects}
        # What the last list showed has had a whole period to arrive through the watch.
        late = [uid for uid, version in self._listed.items() if uid in now and self._heard.get(uid, 0) < version]
        self.missed = late[0] if late else ""
        self._listed = now
        self._heard = {uid: version for uid, version in self._heard.items() if uid in now}


class Health:
    def __init__(self, queue: WorkQueue, hearing: Hearing, deaf_after_seconds: float) -> None:
        self._queue, self._hearing, self._limit = queue, hearing, deaf_after_seconds
        self._resynced_at = time.monotonic()
        self.ready = False
        """A first resync came through."""

    def resynced(self) -> None:
        self._resynced_at = time.monotonic()
        self.ready = True

    def complaint(self) -> str:
        """Why the operator is deaf; empty while it hears."""
        if (age := time.monotonic() - self._resynced_at) > self._limit:
            return f"no resync for {age:.0f} s"
        if (age := self._queue.oldest_seconds()) > self._limit:
            return f"a reconcile has been waiting or running for {age:.0f} s"
        if self._hearing.missed:
            return f"the watch missed a change of {self._hearing.missed}"
        return ""
