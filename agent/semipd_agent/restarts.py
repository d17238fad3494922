"""Restarts of the engine's processes since the agent started. Pure; core forgets its counts when it dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class RestartCounts:
    def __init__(self) -> None:
        self._before: Counter[str] = Counter()
        """Of the cores that are gone."""
        self._current: Mapping[str, int] = {}

    def follow(self, restarts: Mapping[str, int]) -> None:
        """Take the counts of the present core."""
        self._current = dict(restarts)

    def ended(self, name: str) -> None:
        """One that we ended, and whose restarts core does not count."""
        self._before[name] += 1

    def core_lost(self) -> None:
        """What came before belongs to a core that is gone."""
        self._before.update(self._current)
        self._before["core"] += 1
        self._current = {}

    def totals(self) -> dict[str, int]:
        return {name: self._before[name] + self._current.get(name, 0) for name in {*self._before, *self._current}}
