"""Is the operator alive? It is, while its loops turn: reconciles end, well or not, the resync comes round, and the
watches tell what lists show. An API server that is away is no reason for a restart: a new process would not reach it.

Ready is another question: it is, once the first list came through and every watch of the services is open.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from semipd_operator.workqueue import WorkQueue


class WatchFreshness:
    """Compares what a list shows with what the watch told: a change that a whole resync period missed is lost."""

    def __init__(self, namespaces: Iterable[str] = ()) -> None:
        """`namespaces`: those watched, each by a watch of its own; none is one watch of all."""
        self._not_open = set(namespaces) or {""}
        self._opened: set[str] = set()
        self._refused: set[str] = set()
        """Of `namespaces`: where RBAC refuses the watch by now. A new process would be refused, too."""
        self._heard: dict[str, int] = {}
        self._listed: dict[str, dict[str, int]] = {}
        self._missed: dict[str, str] = {}
        """By namespace: what its last list showed, and of that what the watch should have told."""

    @property
    def open(self) -> bool:
        """Every watch of the services that is granted has been open once, and one is; an idle cluster tells nothing
        more."""
        return bool(self._opened) and not self._not_open - self._refused

    @property
    def missed(self) -> str:
        """A uid that the watch missed; empty while it hears."""
        return next((uid for uid in self._missed.values() if uid), "")

    def opened(self, namespace: str) -> None:
        self._not_open.discard(namespace)
        self._opened.add(namespace)
        self._refused.discard(namespace)

    def refused(self, namespace: str) -> None:
        self._refused.add(namespace)

    def heard(self, uid: str, version: str) -> None:
        """The watch told of an object."""
        self._heard[uid] = max(self._heard.get(uid, 0), int(version))

    def gone(self, uid: str) -> None:
        self._heard.pop(uid, None)

    def listed(self, objects: Iterable[tuple[str, str]], namespace: str = "") -> None:
        """(uid, resource version) of every object of a namespace, or of all; once in each resync period."""
        now = {uid: int(version) for uid, version in objects}
        refused = namespace in self._refused
        # What the last list showed has had a whole period to arrive through the watch, if there was one.
        shown = {} if refused else self._listed.get(namespace, {})
        late = (uid for uid, version in shown.items() if uid in now and self._heard.get(uid, 0) < version)
        self._missed[namespace] = next(late, "")
        gone = self._listed.get(namespace, {}).keys() - now.keys()
        self._listed[namespace] = {} if refused else now
        self._heard = {uid: version for uid, version in self._heard.items() if uid not in gone}


class Health:
    def __init__(self, queue: WorkQueue, watches: WatchFreshness, limit_seconds: float) -> None:
        self._queue, self._watches, self._limit = queue, watches, limit_seconds
        self._came_round = time.monotonic()
        self._listed = self._over = False

    def came_round(self) -> None:
        """The resync was tried, with or without success."""
        self._came_round = time.monotonic()

    def listed(self) -> None:
        """The resync came through."""
        self._listed = True

    def ended(self) -> None:
        """Nothing is listed or watched any more: another start follows."""
        self._over = True

    def starting(self) -> str:
        """What has not come through yet since the start; empty once ready, and then until the end."""
        if self._over:
            return "starting anew"
        if not self._listed:
            return "starting: no list of the services yet"
        return "" if self._watches.open else "starting: no watch of the services yet"

    def complaint(self) -> str:
        """Which loop does not turn; empty while all do."""
        if (age := time.monotonic() - self._came_round) > self._limit:
            return f"the resync has not come round for {age:.0f} s"
        if (age := self._queue.stalled_seconds()) > self._limit:
            return f"no reconcile has ended for {age:.0f} s"
        if self._watches.missed:
            return f"the watch missed a change of {self._watches.missed}"
        return ""
