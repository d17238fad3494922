"""The interface of a partitioner backend. Holds no backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from semipd_agent.contract import Enforcement, PartitionReason
from semipd_engine.contract import EngineSnapshot, PartitionPlan, Split, WorkerReport


@dataclass(frozen=True)
class Problem:
    """What contradicts the split, or keeps it from being enforced."""

    reason: PartitionReason
    message: str


class PartitionerUnavailable(Exception):
    """A backend cannot enforce a split here."""

    def __init__(self, reason: PartitionReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Partitioner(Protocol):
    """Turns a split into limits that the engine executes, and judges the workers' proof of them.

    `plan` is what goes to the engine (limits and the environment of a worker started under them); core applies it.
    """

    enforcement: Enforcement
    settle_seconds: float
    """Seconds that live workers may take to follow a split before it counts as failed."""
    mixes: bool
    """Can it have no isolation, too (`Split.mixed_tokens`)?"""

    @property
    def prepares(self) -> bool:
        """Is each rung a worker of its own, so that one without has to be prepared before a move?"""

    @property
    def notice(self) -> str:
        """What was asked for and is not in force, or not proved, and what helps; empty: nothing of that kind."""

    @property
    def name(self) -> str:
        """mps, mps-green, cpu-paced or none: the one in force, whatever was asked for."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """The percentages that this device can express, ascending; empty: all."""

    @property
    def ready(self) -> bool:
        """May the engine start, and a plan be sent?"""

    @property
    def incarnation(self) -> int:
        """What the plans' environments depend on. Another number: the same split is sent under a new epoch."""

    @property
    def lost(self) -> Problem | None:
        """What ended the incarnation before this one; None: nothing did."""

    def preflight(self) -> None:
        """Check, before the engine starts. Raises `PartitionerUnavailable`."""

    async def run(self) -> None:
        """Keep the mechanism alive until cancelled; returns at once where there is none to keep."""

    def quantize(self, want: Split) -> Split:
        """The nearest split that this device can express. Pure."""

    def plan(self, split: Split) -> PartitionPlan:
        """Limits for a quantized split, while `ready`."""

    def follow(self, snapshot: EngineSnapshot) -> None:
        """Take note of the engine's workers and their restarts. Does no I/O."""

    def core_gone(self) -> None:
        """Core has ended, and its workers are nobody's: where they do not leave they are about to be killed. May be
        told again and again. Does not wait."""

    def verify(self, worker: WorkerReport, split: Split) -> Problem | None:
        """What contradicts `split` in a worker's own report, beyond its epoch; None: nothing does."""

    def health(self) -> Problem | None:
        """What is wrong with the mechanism itself (a dead daemon); None: nothing is."""

    async def evict(self) -> None:
        """The engine's processes are about to be killed: end their work on the device first, in bounded time."""

    async def close(self) -> None:
        """Give back what the backend holds, in bounded time. Idempotent."""


class Passive:
    """The part of `Partitioner` that a backend without a mechanism of its own has in common with others."""

    rungs: tuple[int, ...] = ()
    notice = ""
    settle_seconds = 15.0
    mixes = False
    prepares = False
    ready = True
    incarnation = 0
    lost: Problem | None = None

    def preflight(self) -> None:
        return None

    async def run(self) -> None:
        return None

    def follow(self, snapshot: EngineSnapshot) -> None:
        return None

    def core_gone(self) -> None:
        return None

    def verify(self, worker: WorkerReport, split: Split) -> Problem | None:
        return None

    def health(self) -> Problem | None:
        return None

    async def evict(self) -> None:
        return None

    async def close(self) -> None:
        return None
