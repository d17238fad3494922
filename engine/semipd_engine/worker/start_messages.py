"""How a worker that was started by exec comes to its model: messages from the resident, then the resident's memory.

The resident sends one `WorkerStart` on a socket of the worker's own; the page's descriptor and, on the CPU, those of
weights and KV pool travel beside it. Torch-free; attaching itself is `worker.attach`'s business.
"""

from __future__ import annotations

import msgspec

from semipd_engine.cards.config import ModelConfig
from semipd_engine.contract import Phase
from semipd_engine.memory.manifest import ArenaEntry, RegionExport


class ModelExport(msgspec.Struct, frozen=True):
    """A model without its tensors: what it is, where its weights and its KV pool lie, and how to check them."""

    config: ModelConfig
    device: str
    block_size: int
    max_model_len: int
    manifest: list[ArenaEntry]
    checksum: int
    """`WeightArena.checksum` as the resident sees it."""
    weights: RegionExport
    kv: RegionExport
    num_blocks: int
    kernels: str
    """Whose formats the weights have."""


class WorkerStart(msgspec.Struct, frozen=True):
    phase: Phase
    generation: int
    seat: int
    percent: int | None
    model: ModelExport


class ForkWorker(msgspec.Struct, frozen=True):
    """To the zygote: fork a worker with this environment. Its channel, and the socket on which its `WorkerStart` comes,
    travel beside it."""

    environment: dict[str, str]


class Forked(msgspec.Struct, frozen=True):
    """The zygote's answer, and its first word when it has imported all."""

    pid: int = 0
