"""The interface of a partitioner backend. Holds no backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from semipd_agent.contract import Enforcement
from semipd_engine.contract import PartitionPlan, Split, WorkerReport


@dataclass(frozen=True)
class Grant:
    """CPUs that the container may really use (`partitioner.cpus`)."""

    cpus: tuple[int, ...] = ()
    """CPU numbers; empty: not limited by us."""
    quota: float | None = None
    """CFS quota in CPUs; None: no quota."""

    @property
    def threads(self) -> int:
        return max(1, len(self.cpus))


class PartitionerUnavailable(Exception):
    """A backend cannot enforce a split here. `reason` is CamelCase, for the report."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Partitioner(Protocol):
    """Turns a split into limits that the engine executes, and judges the workers' proof of them.

    `plan` is what goes to the engine (limits and the environment of a worker started under them); core applies it.
    """

    name: str
    enforcement: Enforcement

    def preflight(self) -> None:
        """Check once, before the engine starts. Raises `PartitionerUnavailable`."""

    def quantize(self, want: Split) -> Split:
        """The nearest split that this device can express. Pure."""

    def plan(self, split: Split) -> PartitionPlan:
        """Limits for a quantized split. Pure."""

    def verify(self, worker: WorkerReport, split: Split) -> str | None:
        """What contradicts `split` in a worker's own report, beyond its epoch; None: nothing does. Pure."""

    def health(self) -> str | None:
        """What is wrong with the mechanism itself (a dead daemon); None: nothing is."""

    def close(self) -> None:
        """Give back what the backend holds. Idempotent."""
