"""Device memory that processes share, as torch tensors: the driver's allocations (`memory.driver`) in torch's context.

Nothing is ever freed: the regions live as long as their process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semipd_engine.memory import driver


class _DeviceBytes:
    """A pointer with the words that torch reads (CUDA array interface, version 3)."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


def allocate(nbytes: int, device: torch.device) -> tuple[Tensor, bytes]:
    """A zeroed allocation as uint8 [nbytes], and its IPC handle. Raises `driver.CudaError`."""
    _enter_context(device)
    pointer, handle = driver.allocate(nbytes)
    data = _tensor(pointer, nbytes, device)
    data.zero_()  # what lies behind a sequence is masked, and NaN would come through a mask
    torch.cuda.synchronize(device)
    return data, handle


def attach(handle: bytes, nbytes: int, device: torch.device) -> Tensor:
    """Another process's allocation as uint8 [nbytes]. Raises `driver.CudaError`, ValueError."""
    _enter_context(device)
    return _tensor(driver.attach(handle), nbytes, device)


def _enter_context(device: torch.device) -> None:
    """torch's own (primary) context becomes current in this thread."""
    torch.cuda.set_device(device)
    torch.cuda.synchronize(device)


def _tensor(pointer: int, nbytes: int, device: torch.device) -> Tensor:
    data = torch.as_tensor(_DeviceBytes(pointer, nbytes), device=device)
    if data.data_ptr() != pointer:
        raise RuntimeError("torch copied the shared memory instead of using it where it is")
    return data
