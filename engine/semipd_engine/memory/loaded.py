"""What the resident needs of a loaded model, and nothing more: torch is behind it, or a test's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from semipd_engine.contract import EngineOptions
from semipd_engine.ipc.messages import DecodePlan, PrefillPlan, StepResult
from semipd_engine.memory.layout import KVLayout
from semipd_engine.pacing.quantum import Pacer


class Runner(Protocol):
    """Executes plans; stateless between two of them."""

    def prefill(self, plan: PrefillPlan) -> StepResult: ...

    def decode(self, plan: DecodePlan, recalled: Callable[[int], bool]) -> Iterator[StepResult]: ...


class LoadedModel(Protocol):
    """Loaded once by the resident, inherited by every worker that it forks."""

    architecture: str
    dtype: str
    device: str
    vocab_size: int
    weight_bytes: int
    max_model_len: int
    """The model's own limit or the user's, whichever is lower."""
    kv_layout: KVLayout

    def create_kv(self, num_blocks: int) -> int:
        """Descriptor of a new zeroed KV pool."""

    def runner(self, kv_fd: int, num_blocks: int, pacer: Pacer) -> Runner:
        """Called in the worker, after the fork."""

    def set_threads(self, count: int) -> None:
        """Threads of this process's operators."""


Load = Callable[[EngineOptions, Callable[[int], None]], LoadedModel]
"""(options, progress in percent) -> model. Raises `ModelError`."""
