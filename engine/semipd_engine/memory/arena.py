"""All weights of a model in one region, with a manifest: one copy for every process that inherits or attaches to it.

A matrix lies there in the format that its kernels read, and nowhere else. Knows nothing of models, of layers or of who
computes; `model.loader` fills it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from semipd_engine.kernels import PackedGroup, PackedLayout, PackedWeight
from semipd_engine.memory.manifest import ArenaEntry
from semipd_engine.memory.region import Region
from semipd_engine.memory.shared import align

CPU = torch.device("cpu")
PROBES, PROBE_BYTES = 64, 1024


class WeightArena:
    """Vectors by ``arena[name]``, matrices by `packed`. Shared with every other process: read them, never write."""

    def __init__(self, region: Region, manifest: Sequence[ArenaEntry]) -> None:
        """The arena that lies in `region` (filled by `model.loader`, here or in another process)."""
        self.region = region
        self.manifest = tuple(manifest)
        self._tensors = {entry.name: _view(region.data, entry) for entry in self.manifest}
        self._layouts = {
            entry.name: PackedLayout(
                entry.format, entry.shape[entry.count > 0 :], entry.out_features, entry.in_features
            )
            for entry in self.manifest
            if entry.format
        }

    @classmethod
    def create(cls, entries: Sequence[ArenaEntry], device: torch.device = CPU, inherited: bool = False) -> WeightArena:
        """A zeroed arena with room for these entries, whose offsets are chosen here.

        `inherited`: only forked processes will read it, so on the CPU it may be anonymous memory in huge pages.
        """
        manifest, offset = [], 0
        for entry in entries:
            manifest.append(replace(entry, offset=offset))
            offset = align(offset + _nbytes(entry))
        if inherited and device.type == "cpu":
            return cls(Region.create_inherited(offset), manifest)
        return cls(Region.create("semipd-weights", offset, device), manifest)

    @property
    def nbytes(self) -> int:
        return self.region.nbytes

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self._tensors.get(name)

    def tensors(self) -> dict[str, Tensor]:
        """All by name; a matrix in its format."""
        return dict(self._tensors)

    def packed(self, name: str) -> PackedWeight:
        return PackedWeight(self._tensors[name], self._layouts[name])

    def group(self, name: str) -> PackedGroup:
        """Matrices of one shape."""
        return PackedGroup(self._tensors[name], self._layouts[name])

    def checksum(self) -> int:
        """Of `PROBES` pieces of `PROBE_BYTES` bytes all over the arena: two processes see the same weights."""
        step = max(1, self.nbytes // PROBES)
        pieces = [self.region.data[first : first + PROBE_BYTES] for first in range(0, self.nbytes, step)]
        return zlib.crc32(torch.cat(pieces).cpu().numpy().tobytes())


def _nbytes(entry: ArenaEntry) -> int:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    return torch.Size(entry.shape).numel() * dtype.itemsize


def _view(buffer: Tensor, entry: ArenaEntry) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    return buffer[entry.offset :][: _nbytes(entry)].view(dtype).view(entry.shape)
