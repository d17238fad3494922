"""All weights of a model in one shared region, with a manifest: one copy for every process that attaches to it.

Fused tensors (query-key-value, gate-up) are put together here, once. Knows nothing of layers or of who computes.
Loading runs no torch operator in more than the caller's number of threads, so a process that forks its workers later
stays single-threaded with ``torch.set_num_threads(1)``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.weights import WeightSpec, weight_specs
from semipd_engine.memory.manifest import ArenaEntry
from semipd_engine.memory.region import Region
from semipd_engine.memory.shared import align
from semipd_engine.model.checkpoint import stream

CPU = torch.device("cpu")
PROBES, PROBE_BYTES = 64, 1024


class WeightArena:
    def __init__(self, region: Region, manifest: Sequence[ArenaEntry]) -> None:
        """The arena that lies in `region` (filled by `load_arena`, here or in another process)."""
        self.region = region
        self.manifest = tuple(manifest)
        self._tensors = {entry.name: _view(region.data, entry) for entry in self.manifest}

    @classmethod
    def create(cls, specs: Sequence[WeightSpec], dtype: torch.dtype, device: torch.device = CPU) -> WeightArena:
        """A zeroed arena with room for these tensors."""
        manifest, offset = [], 0
        for spec in specs:
            tensor = torch.empty(spec.shape, dtype=dtype, device="meta")
            manifest.append(ArenaEntry(spec.name, offset, spec.shape, tensor.stride(), str(dtype).split(".")[-1]))
            offset = align(offset + tensor.numel() * dtype.itemsize)
        return cls(Region.create("semipd-weights", offset, device), manifest)

    @property
    def nbytes(self) -> int:
        return self.region.nbytes

    def checksum(self) -> int:
        """Of `PROBES` pieces of `PROBE_BYTES` bytes all over the arena: two processes see the same weights."""
        step = max(1, self.nbytes // PROBES)
        pieces = [self.region.data[first : first + PROBE_BYTES] for first in range(0, self.nbytes, step)]
        return zlib.crc32(torch.cat(pieces).cpu().numpy().tobytes())

    def tensors(self) -> dict[str, Tensor]:
        """Views by engine name (`weight_specs`), shared with every other mapping: read them, never write."""
        return dict(self._tensors)


def load_arena(
    config: ModelConfig,
    model_dir: Path | str,
    dtype: torch.dtype,
    progress: Callable[[int], None] = lambda percent: None,
    device: torch.device = CPU,
) -> WeightArena:
    """Stream the checkpoint's safetensors files into a new arena on `device`, cast to `dtype`.

    `progress` is told the percentage whenever it grows. Raises `ModelError` for missing, unexpected or wrongly shaped
    tensors (`model.checkpoint`).
    """
    specs = weight_specs(config)
    arena = WeightArena.create(specs, dtype, device)
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


def dummy_arena(config: ModelConfig, dtype: torch.dtype, device: torch.device = CPU) -> WeightArena:
    """An arena with the shapes of `config` and random weights, made where it lies: nothing is read or copied. Every
    matrix keeps the size of its input; norms are 1, biases 0. The same on every start of one device."""
    arena = WeightArena.create(weight_specs(config), dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in arena.tensors().items():
        if tensor.dim() > 1:
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
        elif not name.endswith("bias"):
            tensor.fill_(1.0)
    return arena


def _view(buffer: Tensor, entry: ArenaEntry) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    flat = buffer[entry.offset :][: torch.Size(entry.shape).numel() * dtype.itemsize].view(dtype)
    return flat.as_strided(entry.shape, entry.stride, flat.storage_offset())
