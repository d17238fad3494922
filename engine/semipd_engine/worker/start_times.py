"""What a worker's start is made of: parts that follow each other, each with the seconds that it took."""

from __future__ import annotations

import time
from collections.abc import Callable


class StartTimes:
    """``began_at``: CLOCK_MONOTONIC seconds, which processes of one machine share."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.began_at = self._since = clock()
        self.seconds: dict[str, float] = {}

    def done(self, part: str) -> None:
        """`part` has just ended, and the next one begins. Another time under the same name adds to it."""
        now = self._clock()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now
