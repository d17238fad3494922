"""Questions to the API server that nothing depends on: what RBAC refuses stays unknown, and a server in trouble (any
other refusal, no answer, a slow one) leaves what was last known. Nothing of the kind is raised. It knows no question.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from semipd_operator.answers import ApiAway, ApiRefused

T = TypeVar("T")

PATIENCE_SECONDS = 5.0
"""For one question, and for all of one look, so that a slow server holds up no status."""
NOT_OURS_TO_KNOW = (403, 404)


@asynccontextmanager
async def courtesy() -> AsyncIterator[None]:
    with contextlib.suppress(ApiRefused, ApiAway, TimeoutError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield


@dataclass(frozen=True)
class Known(Generic[T]):
    value: T | None = None
    """None: not known."""
    asked: float = float("-inf")
    answered: bool = False


class Answers(Generic[T]):
    """To one question, by the name of what it is about."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, Known[T]] = {}

    def __getitem__(self, name: str) -> Known[T]:
        return self._known.get(name, Known[T]())

    def age(self, name: str) -> float:
        """Seconds since it was asked last, with an answer or not."""
        return self._clock() - self[name].asked

    async def ask(self, name: str, question: Callable[[], Awaitable[T | None]]) -> None:
        self._known[name] = replace(self[name], asked=self._clock(), answered=False)
        async with courtesy():
            try:
                value = await question()
            except ApiRefused as refused:
                if refused.status not in NOT_OURS_TO_KNOW:
                    raise
                value = None
            self._known[name] = Known(value, self._clock(), answered=True)

    def forget(self, oldest: float) -> None:
        """What was not asked since. In place: another look may wait for an answer to put there."""
        for name in [name for name, known in self._known.items() if known.asked <= oldest]:
            del self._known[name]
