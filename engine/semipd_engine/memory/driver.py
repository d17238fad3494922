"""The few calls of the CUDA driver API that torch has no words for, by ctypes. Torch-free; makes no context.

An allocation of `cuMemAlloc` of its own has an IPC handle without offset; memory of torch's caching allocator would not
(segments, offsets, a reference file for each consumer, and expandable segments cannot be exported that way at all).
The handle opens in any process but the one that made it, whether the two are MPS clients or not, as long as the maker
lives. Source: CUDA Driver API, "Memory Management"; the unit tests hold `SIGNATURES` against NVIDIA's own ``cuda.h``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER
from functools import lru_cache
from typing import Any

LIBRARY = "libcuda.so.1"
"""The driver's library, which has this name whatever toolkit torch was built with."""
HANDLE_BYTES = 64
GRANULE = 2 << 20
"""Bytes. The driver puts smaller allocations side by side into one piece of this size, and a handle exports the whole
piece: a region that shared its piece with another allocation would export that one, too."""
LAZY_ENABLE_PEER_ACCESS = 1
OUT_OF_MEMORY = 2
MISSING = -1
"""No CUresult: there is no such function."""


class CudaError(Exception):
    """A driver call failed. `code` is the CUresult."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.code = code


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle; travels by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuGetErrorName": (ctypes.c_int, POINTER(ctypes.c_char_p)),
    "cuMemAlloc_v2": (POINTER(ctypes.c_uint64), ctypes.c_size_t),
    "cuIpcGetMemHandle": (POINTER(IpcHandle), ctypes.c_uint64),
    "cuIpcOpenMemHandle_v2": (POINTER(ctypes.c_uint64), IpcHandle, ctypes.c_uint),
}
"""Parameters of every call that is made, by the name of its symbol; all return a CUresult."""


def allocate(nbytes: int) -> tuple[int, bytes]:
    """Address and IPC handle of a new allocation in the current context, undefined content. Raises `CudaError`."""
    pointer, handle = ctypes.c_uint64(), IpcHandle()
    _call("cuMemAlloc_v2", ctypes.byref(pointer), -(-nbytes // GRANULE) * GRANULE)
    _call("cuIpcGetMemHandle", ctypes.byref(handle), pointer)
    return pointer.value, bytes(handle.reserved)


def attach(handle: bytes) -> int:
    """Address of another process's allocation in the current context. Raises `CudaError`, ValueError."""
    if len(handle) != HANDLE_BYTES:
        raise ValueError(f"a CUDA IPC handle has {HANDLE_BYTES} bytes, this one {len(handle)}")
    pointer = ctypes.c_uint64()
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(pointer), IpcHandle.from_buffer_copy(handle), LAZY_ENABLE_PEER_ACCESS)
    return pointer.value


def call(signatures: Mapping[str, tuple[Any, ...]], name: str, *arguments: Any) -> None:
    """One of the driver's functions, by the parameters that `signatures` gives it. Raises `CudaError`; MISSING is the
    code where this driver has no such function."""
    try:
        function = getattr(_driver(), name)
    except AttributeError as error:
        raise CudaError(name, MISSING, "this driver does not have it") from error
    function.argtypes, function.restype = signatures[name], ctypes.c_int
    if code := int(function(*arguments)):
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise CudaError(name, code, (text.value or b"unknown error").decode())


def _call(name: str, *arguments: Any) -> None:
    call(SIGNATURES, name, *arguments)


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    library.cuGetErrorName.argtypes, library.cuGetErrorName.restype = SIGNATURES["cuGetErrorName"], ctypes.c_int
    return library
