"""Waiting for what comes true by itself: the one loop of tests, benchmarks and the demo.

Knows no process and no cluster, and needs the standard library only: it runs on a bare GPU machine too.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 120.0
"""So long that only what never comes is missed, on a machine with other work, too. It costs a failing test only."""

Description = str | Callable[[], object]
"""What was waited for, in words; or what tells it when it did not come."""


class NotInTime(AssertionError):
    """The text says what did not come true, within how many seconds, and what was seen last."""


def wait_until(
    what: Callable[[], T | None], timeout_s: float = PATIENCE_S, describe: Description = "", every_s: float = 0.05
) -> T:
    """The first truthy value of `what`, looked at once at least. Raises `NotInTime`."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        if time.monotonic() >= deadline:
            raise NotInTime(_message(what, timeout_s, describe, value))
        time.sleep(every_s)
    return value


async def wait_until_async(
    what: Callable[[], T | None], timeout_s: float = PATIENCE_S, describe: Description = "", every_s: float = 0.02
) -> T:
    """`wait_until` for what other tasks of the same loop bring about."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        if time.monotonic() >= deadline:
            raise NotInTime(_message(what, timeout_s, describe, value))
        await asyncio.sleep(every_s)
    return value


def _message(what: Callable[[], object], timeout_s: float, describe: Description, last: object) -> str:
    said = describe() if callable(describe) else describe
    return f"not within {timeout_s:g} s: {said or f'{_source(what)}, last {last!r}'}"


def _source(what: Callable[[], object]) -> str:
    """A lambda as its lines stand in the file; anything else by its name."""
    name = getattr(what, "__qualname__", "") or repr(what)
    if not name.endswith("<lambda>"):
        return name
    try:
        return " ".join(inspect.getsource(what).split())
    except OSError:
        return name
