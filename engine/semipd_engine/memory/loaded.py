"""What the resident needs of a loaded model, and nothing more: torch is behind it, or a test's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from semipd_engine.contract import EngineOptions
from semipd_engine.ipc.messages import StepPlan, StepResult
from semipd_engine.memory.kv_size import MemoryGrant
from semipd_engine.memory.layout import KVLayout
from semipd_engine.pacing.quantum import Pacer


class Runner(Protocol):
    """Executes plans; what it keeps between two of them it can do without."""

    def execute(self, plan: StepPlan, recalled: Callable[[int], bool]) -> Iterator[StepResult]:
        """One result after each step, until the plan ends (`StepPlan`). Raises `StaleSlot`, having run nothing."""


class StaleSlot(Exception):
    """The plan takes for granted what this worker does not hold of a slot: core must send it in full."""


class UnfitError(Exception):
    """This process cannot serve as a worker. `reason` is CamelCase, for the status."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Attachment:
    """What a worker that is started by exec needs in order to attach to the resident's memory."""

    message: Any
    """A msgspec struct (`worker.attach.ModelExport`)."""
    fds: tuple[int, ...]
    """Descriptors that travel beside it."""


class ServableModel(Protocol):
    """A model in a worker: attached, nothing of it copied."""

    device: str
    """cpu or cuda."""

    def runner(self, pacer: Pacer) -> Runner:
        """A runner over the KV pool, warmed up where that matters. Raises `UnfitError`."""

    def sm_count(self) -> int | None:
        """Streaming multiprocessors that this process may use; None on the CPU."""

    def set_threads(self, count: int) -> None:
        """Threads of this process's operators."""

    def is_fatal(self, error: Exception) -> bool:
        """Is the device lost to this process after `error`, so that only a new process can go on?"""


class LoadedModel(ServableModel, Protocol):
    """Loaded once by the resident; its workers inherit it (fork) or attach to it (exec)."""

    architecture: str
    dtype: str
    vocab_size: int
    weight_bytes: int
    max_model_len: int
    """The model's own limit or the user's, whichever is lower."""
    kv_layout: KVLayout

    def kv_grant(self) -> MemoryGrant:
        """What the device has left for the KV pool, after the weights."""

    def create_kv(self, num_blocks: int) -> int:
        """Make the KV pool, zeroed. Its descriptor, or -1 where it is device memory. Raises `ModelError`."""

    def attachment(self) -> Attachment | None:
        """For workers that are started by exec; None: they are forked."""


Load = Callable[[EngineOptions, Callable[[int], None]], LoadedModel]
"""(options, progress in percent) -> model. Raises `ModelError`."""
