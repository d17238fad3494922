"""What a worker's loop needs of a model, and nothing more: torch is behind it, or a test's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from semipd_engine.contract import Phase
from semipd_engine.ipc.steps import Continuation, StepPlan, StepResult
from semipd_engine.pacing.quantum import Pacer
from semipd_engine.worker.start_times import StartTimes

Following = Callable[[int], Continuation | None]
"""Takes what continues a plan with the step of this number, if it has arrived."""


def nothing_follows(seq: int) -> None:
    """A `Following`."""


class Runner(Protocol):
    """Executes plans; what it keeps between two of them it can do without."""

    def prepare(self) -> bool:
        """A few milliseconds of what makes later steps shorter, while there is no plan. Is there more to do?"""

    def execute(
        self, plan: StepPlan, recalled: Callable[[int], bool], following: Following = nothing_follows
    ) -> Iterator[StepResult]:
        """One result after each step, until the plan and what continues it end (`StepPlan`). Raises `StaleSlot` for
        what it has run nothing of."""


class StaleSlot(Exception):
    """The plan takes for granted what this worker does not hold: core must send it in full."""

    def __init__(self, seq: int | None = None) -> None:
        super().__init__(seq)
        self.seq = seq
        """Of what continues the plan; None: of the plan itself."""


class UnfitError(Exception):
    """This process cannot serve as a worker. `reason` is CamelCase, for the status."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ServableModel(Protocol):
    """A model in a worker: attached, nothing of it copied."""

    device: str
    """cpu or cuda."""
    start: StartTimes
    """Of this process, once `runner` has returned."""
    rungs: Mapping[int, int]
    """Then, too: the SMs of each rung that it holds, by number, where it holds several; else empty."""
    lost: Mapping[int, str]
    """Those that it was to hold and does not, and why."""

    def runner(self, pacer: Pacer, phase: Phase) -> Runner:
        """A runner over the KV pool for the plans of a phase, warmed up where that matters. Raises `UnfitError`."""

    def sm_count(self) -> int | None:
        """Streaming multiprocessors that this process may use; None on the CPU."""

    def set_threads(self, count: int) -> None:
        """Threads of this process's operators."""

    def is_fatal(self, error: Exception) -> bool:
        """Is the device lost to this process after `error`, so that only a new process can go on?"""
