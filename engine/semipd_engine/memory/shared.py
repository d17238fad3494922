"""Memory that processes share, mapped as a flat tensor of bytes: a memfd, or anonymous memory that forks inherit.

Linux only; knows nothing of what lies in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: a cache line, and what vector loads like."""

HUGE_PAGE = 2 << 20
POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of `madvise(2)`, which Python's mmap does not name."""


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
    return _tensor(mmap.mmap(fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))


def map_anonymous(nbytes: int) -> Tensor:
    """uint8 [nbytes], zeroed, of this process and those forked from it. Unlike a memfd it gets huge pages on most hosts
    (``shmem_enabled`` is ``never`` on many): fewer misses of the TLB while weights are read."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return _tensor(mmap.mmap(-1, nbytes, flags, mmap.PROT_READ | mmap.PROT_WRITE))


def forbid_writing(data: Tensor) -> None:
    """Make the pages of a whole mapping read-only: a stray write is a SIGSEGV, and no fork ever copies one of them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(data.data_ptr()), ctypes.c_size_t(data.numel()), mmap.PROT_READ) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def take_pages(data: Tensor, begin: int, end: int) -> bool:
    """Give this process the pages that hold bytes begin .. end - 1 of a mapping, as writing to each would, with their
    content left alone. False where the kernel is older than 5.14, or has no memory to give."""
    first = (data.data_ptr() + begin) // mmap.PAGESIZE * mmap.PAGESIZE
    size = data.data_ptr() + end - first
    answer: int = ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), POPULATE_WRITE)
    return answer == 0


def _tensor(mapping: mmap.mmap) -> Tensor:
    with contextlib.suppress(OSError):  # huge pages are a favour of the kernel
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)
