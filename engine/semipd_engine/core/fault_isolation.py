"""Which request makes workers die: suspicion, isolation, and when to give up. Pure; knows no plans and no processes.

A worker that ends by its own doing (a crash) speaks against the requests in its step. They run alone, one after the
other, until each gets further; one that crashes a worker alone is tried once more and then answered with an error. A
worker that somebody killed speaks against nobody, so its requests are planned again and again; but the OOM killer kills
from outside, too, and one request alone may be too large for the memory: hence a high bound.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass

from semipd_engine.core.request import Request

ISOLATE_AFTER = 3
"""Failed plans after which a request runs alone, so that a poisonous one is found and the others go on."""
LONE_CRASHES = 2
"""Crashes of workers that ran the request alone after which it is answered with an error: one retry."""
GIVE_UP_AFTER = 40
"""Deaths of workers, by whatever cause, after which a request that ran alone is answered with an error."""
FAULTS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Signals by which a process ends of its own doing."""


@dataclass(frozen=True)
class Ending:
    """How a worker ended."""

    status: int | None = None
    """Exit code, or minus the signal's number; None where nobody could ask: its parent died first."""

    @property
    def own_doing(self) -> bool:
        return self.status is not None and (self.status > 0 or -self.status in FAULTS)

    def __str__(self) -> str:
        if self.status is None:
            return "unknown"
        if self.status >= 0:
            return f"exit status {self.status}"
        known = -self.status in set(signal.Signals)
        return signal.Signals(-self.status).name if known else f"signal {-self.status}"


KILLED = Ending(-signal.SIGKILL)


def is_suspect(request: Request) -> bool:
    """Plans with this request keep failing: it must run alone until it gets further."""
    return request.failures >= ISOLATE_AFTER


def by_suspicion(requests: Iterable[Request]) -> list[Request]:
    """The least suspect first: an innocent one is cleared before the culprit strikes again."""
    return sorted(requests, key=lambda request: request.failures)


def suspect(request: Request) -> None:
    request.failures = max(request.failures, ISOLATE_AFTER)


def blame(request: Request, ending: Ending, alone: bool) -> str | None:
    """Book a worker's end against a request of its step. Returns the error that the request must end with, if any."""
    request.failures += 1
    if ending.own_doing:
        suspect(request)
        request.crashes += alone
        if request.crashes >= LONE_CRASHES:
            return f"the worker crashed {request.crashes} times while it ran this request alone ({ending})"
    if alone and request.failures >= GIVE_UP_AFTER:
        return f"{request.failures} workers died while they ran this request"
    return None


def acquit(request: Request) -> None:
    """The request got further."""
    request.failures = request.crashes = 0
