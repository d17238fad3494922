"""Time as the agent sees it, so that tests can bring their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """CLOCK_MONOTONIC seconds, the time base of the engine's reports."""

    def wall(self) -> datetime:
        """The present in UTC, for people."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> datetime:
        return datetime.now(UTC)
