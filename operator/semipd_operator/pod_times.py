"""Since when something is so of a pod, by our own clock. Schedulers and nodes have clocks of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from semipd_operator.status.observed import PodView

_FIELDS = ("ready_since", "ended_at", "started_at", "held_since", "preparing_since", "unseen_since")
"""Of `PodView`, that others stamp."""
_MOST_REMEMBERED = 10_000


class PodTimes:
    def __init__(self, ahead: Callable[[], timedelta]) -> None:
        """`ahead`: how far the API server's clock is ahead of ours."""
        self._ahead = ahead
        self._known: dict[str, dict[str, tuple[datetime, datetime]]] = {}
        """By the pod's uid and the field of its view: what others say, and by our clock since when they do."""

    def by_our_clock(self, pod: dict[str, Any], view: PodView, now: datetime) -> PodView:
        """The view with its times by our clock, and never too long ago: since we saw it so, and what was so before we
        looked not before its creation. That is the API server's time, whose clock we can compare with ours, unlike
        those of a scheduler and a node."""
        before = self._known.pop(view.uid, None)  # and to the end, behind those that went
        created = pod["metadata"].get("creationTimestamp")
        times: dict[str, tuple[datetime, datetime]] = {}
        for name in _FIELDS:
            said: datetime | None = getattr(view, name)
            if said is None:
                continue
            if before is None:
                first = max(said, datetime.fromisoformat(created) if created else said)
                times[name] = said, min(now, first - self._ahead())
            else:
                known = before.get(name)
                times[name] = known if known and known[0] == said else (said, now)
        self._known[view.uid] = times
        ours: dict[str, Any] = {name: since for name, (_, since) in times.items()}
        return replace(view, **ours)

    def forget(self) -> None:
        """Those that were not looked at for longest."""
        while len(self._known) > _MOST_REMEMBERED:
            del self._known[next(iter(self._known))]
