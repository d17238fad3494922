"""What the resident needs of a loaded model, and nothing more: torch is behind it, or a test's model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from semipd_engine.contract import EngineOptions
from semipd_engine.memory.kv_size import MemoryGrant
from semipd_engine.memory.layout import KVLayout
from semipd_engine.worker.servable import ServableModel


@dataclass(frozen=True)
class Attachment:
    """What a worker that is started by exec needs in order to attach to the resident's memory."""

    message: Any
    """A msgspec struct (`worker.start_messages.ModelExport`)."""
    fds: tuple[int, ...]
    """Descriptors that travel beside it."""


class LoadedModel(ServableModel, Protocol):
    """Loaded once by the resident; its workers inherit it (fork) or attach to it (exec)."""

    architecture: str
    dtype: str
    kernels: str
    """The name of those that run."""
    kernels_shortfall: str
    """Why no faster ones do, and what helps; empty where nothing is amiss."""
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
