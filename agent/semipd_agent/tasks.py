"""What must go on whatever happens: background tasks that are started again, steps whose failure ends nothing.

The agent is PID 1: an exception that ends it ends every stream of the pod. So a defect is logged with its traceback,
named in the status report (`Faults.report`) and left behind. Knows no task and no step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from semipd_agent.clock import Clock
from semipd_agent.contract import Fault

log = logging.getLogger(__name__)

FORGET_SECONDS = 300.0
"""A fault that did not come again for so long is no longer shown."""
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0
MOST_DOUBLINGS = 16
"""A power of as many failures as a night brings is no float any more."""


def back_off(first: float, failures: int, longest: float) -> float:
    """Seconds to wait after so many failures before the newest one: `first`, doubled by each of them."""
    return min(longest, first * 2.0 ** min(failures, MOST_DOUBLINGS))


@dataclass
class _Seen:
    message: str
    first: datetime
    last: float
    count: int


class Faults:
    """The defects of late, by the part that failed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def note(self, part: str, error: BaseException) -> str:
        """Count a failure; returns it in words. The traceback is logged when it is a new one."""
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        now = self._clock.monotonic()
        seen = self._seen.get(part)
        if seen is None or seen.message != message or now - seen.last > FORGET_SECONDS:
            log.error("%s failed and goes on", part, exc_info=error)
            self._seen[part] = _Seen(message, self._clock.wall(), now, 1)
        else:
            seen.last, seen.count = now, seen.count + 1
        return message

    @contextmanager
    def contained(self, part: str) -> Iterator[None]:
        """An exception inside is noted and goes no further."""
        try:
            yield
        except Exception as e:
            self.note(part, e)

    def report(self) -> tuple[Fault, ...]:
        now = self._clock.monotonic()
        return tuple(
            Fault(part=part, message=seen.message, since=seen.first, count=seen.count)
            for part, seen in self._seen.items()
            if now - seen.last <= FORGET_SECONDS
        )


async def keep_going(part: str, run: Callable[[], Awaitable[None]], faults: Faults) -> None:
    """Run until it returns by itself; one that raises is started again after a growing pause."""
    delay = FIRST_DELAY
    while True:
        try:
            return await run()
        except Exception as e:
            faults.note(part, e)
        await asyncio.sleep(delay)
        delay = min(LONGEST_DELAY, 2 * delay)
