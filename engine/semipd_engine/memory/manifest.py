"""What a process must be told to find tensors in another's memory. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class ArenaEntry:
    """One weight tensor."""

    name: str
    offset: int
    """Bytes from the start of the region."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Elements."""
    dtype: str


class RegionExport(msgspec.Struct, frozen=True):
    """What another process needs to attach to a region. On the CPU the descriptor travels beside it."""

    nbytes: int
    cuda_handle: bytes = b""
    """CUDA IPC handle; empty on the CPU."""
