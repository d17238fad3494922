"""A piece of memory that several processes map: a memfd or inherited memory on the CPU, one plain allocation on a GPU.

Knows nothing of what lies in it. The process that made a region must outlive all that have attached to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from semipd_engine.memory.manifest import RegionExport
from semipd_engine.memory.shared import create_memfd, forbid_writing, map_anonymous, map_memfd


@dataclass(frozen=True)
class Region:
    data: Tensor
    """uint8 [nbytes], on the region's device."""
    fd: int = -1
    """CPU: the memfd; -1 if the memory can only be inherited."""
    cuda_handle: bytes = b""

    @property
    def nbytes(self) -> int:
        return self.data.numel()

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.fd,) if self.fd >= 0 else ()

    def export(self) -> RegionExport:
        return RegionExport(self.nbytes, self.cuda_handle)

    @classmethod
    def create(cls, name: str, nbytes: int, device: torch.device) -> Region:
        """A new zeroed region. Raises OSError, or `CudaError` (out of memory)."""
        if device.type == "cuda":
            from semipd_engine.memory import cuda

            data, handle = cuda.allocate(nbytes, device)
            return cls(data, cuda_handle=handle)
        return cls.map(create_memfd(name, nbytes), nbytes)

    @classmethod
    def create_inherited(cls, nbytes: int) -> Region:
        """A new zeroed region of the CPU that only forked processes share; `seal` it before the first fork."""
        return cls(map_anonymous(nbytes))

    def seal(self) -> None:
        """From now on nobody can write it: forked processes read the same pages for ever. Inherited regions only."""
        if self.fd < 0 and self.data.device.type == "cpu":
            forbid_writing(self.data)

    @classmethod
    def map(cls, fd: int, nbytes: int) -> Region:
        """The region that lies in this memfd."""
        return cls(map_memfd(fd, nbytes), fd=fd)

    @classmethod
    def attach(cls, export: RegionExport, fds: list[int], device: torch.device) -> Region:
        """A region of another process; on the CPU its descriptor is taken from the front of `fds`."""
        if device.type == "cuda":
            from semipd_engine.memory import cuda

            return cls(cuda.attach(export.cuda_handle, export.nbytes, device), cuda_handle=export.cuda_handle)
        return cls.map(fds.pop(0), export.nbytes)
