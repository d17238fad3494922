"""Anonymous shared memory (memfd) mapped as a flat tensor of bytes. Linux only; knows nothing of what lies in it."""

from __future__ import annotations

import contextlib
import mmap
import os

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: a cache line, and what vector loads like."""


def align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def create_memfd(name: str, nbytes: int) -> int:
    """A new zeroed memfd of this size. It counts as shared memory of the container, never against /dev/shm."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, nbytes)
    except OSError:
        os.close(fd)
        raise
    return fd


def map_memfd(fd: int, nbytes: int) -> Tensor:
    """uint8 [nbytes], shared with every other mapping of `fd`. The mapping lives as long as the tensor's storage.

    Raises ValueError if the file is shorter: touching such a mapping would be a SIGBUS.
    """
    size = os.fstat(fd).st_size
    if size < nbytes:
        raise ValueError(f"shared memory holds {size} bytes, {nbytes} are needed")
    mapping = mmap.mmap(fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with contextlib.suppress(OSError):  # huge pages are a favour of the kernel
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)
