"""All weights of a model in one shared mapping, with a manifest: one copy for every process that has the descriptor.

Fused tensors (query-key-value, gate-up) are put together here, once. Knows nothing of layers or of who computes.
Loading runs no torch operator in more than the caller's number of threads, so a process that forks its workers later
stays single-threaded with ``torch.set_num_threads(1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from semipd_engine.memory.shared import align, create_memfd, map_memfd
from semipd_engine.model.checkpoint import stream
from semipd_engine.model.config import ModelConfig
from semipd_engine.model.weights import WeightSpec, weight_specs


@dataclass(frozen=True)
class ArenaEntry:
    name: str
    offset: int
    """Bytes from the start of the mapping."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Elements."""
    dtype: str


class WeightArena:
    def __init__(self, fd: int, manifest: Sequence[ArenaEntry], nbytes: int) -> None:
        """Map the arena that lies in `fd` (made by `create` or `load_arena`, here or in another process)."""
        self.fd = fd
        self.manifest = tuple(manifest)
        self.nbytes = nbytes
        buffer = map_memfd(fd, nbytes)
        self._tensors = {entry.name: _view(buffer, entry) for entry in self.manifest}

    @classmethod
    def create(cls, specs: Sequence[WeightSpec], dtype: torch.dtype) -> WeightArena:
        """A zeroed arena with room for these tensors."""
        manifest, offset = [], 0
        for spec in specs:
            tensor = torch.empty(spec.shape, dtype=dtype, device="meta")
            manifest.append(ArenaEntry(spec.name, offset, spec.shape, tensor.stride(), str(dtype).split(".")[-1]))
            offset = align(offset + tensor.numel() * dtype.itemsize)
        return cls(create_memfd("semipd-weights", offset), manifest, offset)

    def tensors(self) -> dict[str, Tensor]:
        """Views by engine name (`weight_specs`), shared with every other mapping: read them, never write."""
        return dict(self._tensors)


def load_arena(
    config: ModelConfig,
    model_dir: Path | str,
    dtype: torch.dtype,
    progress: Callable[[int], None] = lambda percent: None,
) -> WeightArena:
    """Stream the checkpoint's safetensors files into a new arena, cast to `dtype`.

    `progress` is told the percentage whenever it grows. Raises `ModelError` for missing, unexpected or wrongly shaped
    tensors (`model.checkpoint`).
    """
    specs = weight_specs(config)
    arena = WeightArena.create(specs, dtype)
    views = arena.tensors()
    targets: dict[str, Tensor] = {}
    for spec in specs:
        row = 0
        for source in spec.sources:
            targets[source.name] = views[spec.name][row : row + source.shape[0]]
            row += source.shape[0]
    total, done, percent = sum(target.numel() for target in targets.values()), 0, 0
    for name, tensor in stream(Path(model_dir), {name: tuple(t.shape) for name, t in targets.items()}, config):
        targets[name].copy_(tensor)
        done += tensor.numel()
        if done * 100 // total > percent:
            percent = done * 100 // total
            progress(percent)
    return arena


def _view(buffer: Tensor, entry: ArenaEntry) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    flat = buffer[entry.offset :][: torch.Size(entry.shape).numel() * dtype.itemsize].view(dtype)
    return flat.as_strided(entry.shape, entry.stride, flat.storage_offset())
