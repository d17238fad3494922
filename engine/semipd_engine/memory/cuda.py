"""Device memory that processes share: the few calls of the CUDA driver API that torch has no words for.

An allocation of `cuMemAlloc` of its own has an IPC handle without offset; memory of torch's caching allocator would not
(segments, offsets, a reference file for each consumer, and expandable segments cannot be exported that way at all).
The handle opens in any process but the one that made it, whether the two are MPS clients or not, as long as the maker
lives. Source: CUDA Driver API, "Memory Management". Nothing is ever freed: the regions live as long as their process.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

HANDLE_BYTES = 64
GRANULE = 2 << 20
"""Bytes. The driver puts smaller allocations side by side into one piece of this size, and a handle exports the whole
piece: a region that shared its piece with another allocation would export that one, too."""
LAZY_ENABLE_PEER_ACCESS = 1
OUT_OF_MEMORY = 2


class CudaError(Exception):
    """A driver call failed. `code` is the CUresult."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.code = code


class _IpcHandle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


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
    """A zeroed allocation as uint8 [nbytes], and its IPC handle. Raises `CudaError`."""
    _enter_context(device)
    pointer, handle = ctypes.c_uint64(), _IpcHandle()
    _call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(-(-nbytes // GRANULE) * GRANULE))
    _call("cuIpcGetMemHandle", ctypes.byref(handle), pointer)
    data = _tensor(pointer, nbytes, device)
    data.zero_()  # what lies behind a sequence is masked, and NaN would come through a mask
    torch.cuda.synchronize(device)
    return data, bytes(handle.reserved)


def attach(handle: bytes, nbytes: int, device: torch.device) -> Tensor:
    """Another process's allocation as uint8 [nbytes]. Raises `CudaError`."""
    if len(handle) != HANDLE_BYTES:
        raise ValueError(f"a CUDA IPC handle has {HANDLE_BYTES} bytes, this one {len(handle)}")
    _enter_context(device)
    pointer = ctypes.c_uint64()
    _call(
        "cuIpcOpenMemHandle_v2",
        ctypes.byref(pointer),
        _IpcHandle.from_buffer_copy(handle),
        ctypes.c_uint(LAZY_ENABLE_PEER_ACCESS),
    )
    return _tensor(pointer, nbytes, device)


def _enter_context(device: torch.device) -> None:
    """torch's own (primary) context becomes current in this thread."""
    torch.cuda.set_device(device)
    torch.cuda.synchronize(device)


def _tensor(pointer: ctypes.c_uint64, nbytes: int, device: torch.device) -> Tensor:
    data = torch.as_tensor(_DeviceBytes(pointer.value, nbytes), device=device)
    if data.data_ptr() != pointer.value:
        raise RuntimeError("torch copied the shared memory instead of using it where it is")
    return data


def _call(name: str, *arguments: Any) -> None:
    code = int(getattr(_driver(), name)(*arguments))
    if code != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
        raise CudaError(name, code, (text.value or b"unknown error").decode())


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    """The driver's library, which has this name whatever toolkit torch was built with."""
    return ctypes.CDLL("libcuda.so.1")
