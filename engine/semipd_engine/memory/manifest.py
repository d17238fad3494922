"""What a process must be told to find tensors in another's memory. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class ArenaEntry:
    """One weight."""

    name: str
    offset: int
    """Bytes from the start of the region."""
    shape: tuple[int, ...]
    """Of the tensor that holds it, contiguous."""
    dtype: str
    format: str = ""
    """Of a matrix: how its ``[out_features, in_features]`` lie in that tensor (`kernels.packed`); else empty."""
    out_features: int = 0
    in_features: int = 0
    count: int = 0
    """So many such matrices lie there, one behind the other; 0: one."""


class RegionExport(msgspec.Struct, frozen=True):
    """What another process needs to attach to a region. On the CPU the descriptor travels beside it."""

    nbytes: int
    cuda_handle: bytes = b""
    """CUDA IPC handle; empty on the CPU."""
