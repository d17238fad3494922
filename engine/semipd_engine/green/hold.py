"""Blocks that each hold an SM until they are let go: how two lanes are seen to share none. Torch-free.

A block asks for more than half of an SM's shared memory, so no SM has two of them. It says "here" in a place of its
own, waits for the flag, and says "gone". If n blocks of one lane and m of another are all here, and none is gone, they
are on n + m SMs: no clock is read, and no number of an SM, which on Hopper is a virtual one. That the flag never comes
ends a block as well, after `LIMIT`, so that nothing hangs when its process dies. **Not executed on a GPU yet.**
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, byref
from typing import Any

from semipd_engine.memory import driver

LIMIT_NS = 2_000_000_000
"""By the device's clock."""
PORTABLE = 1
"""CU_MEMHOSTALLOC_PORTABLE: the memory is mapped, and the device writes to the host's own addresses."""
SHARED_PER_BLOCK, SHARED_PER_SM = 97, 81
"""CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN and ..._PER_MULTIPROCESSOR."""
DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""

# hold(here, gone, flag, limit): u32 here[block], u32 gone[block], u32 flag. One thread a block.
PTX = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry hold(.param .u64 here, .param .u64 gone, .param .u64 flag, .param .u64 limit)
{
    .reg .pred %again;
    .reg .b32 %block, %said;
    .reg .b64 %at, %left, %let_go, %begun, %now, %longest, %offset;
    mov.u32 %block, %ctaid.x;
    mul.wide.u32 %offset, %block, 4;
    ld.param.u64 %at, [here];
    ld.param.u64 %left, [gone];
    ld.param.u64 %let_go, [flag];
    ld.param.u64 %longest, [limit];
    add.u64 %at, %at, %offset;
    add.u64 %left, %left, %offset;
    mov.u64 %begun, %globaltimer;
    st.volatile.global.u32 [%at], 1;
    membar.sys;
WAIT:
    ld.volatile.global.u32 %said, [%let_go];
    setp.ne.u32 %again, %said, 0;
    @%again bra DONE;
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %begun;
    setp.lt.u64 %again, %now, %longest;
    @%again bra WAIT;
DONE:
    st.volatile.global.u32 [%left], 1;
    membar.sys;
    ret;
}
\0"""

SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDevicePrimaryCtxRetain": (POINTER(ctypes.c_void_p), ctypes.c_int),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuDeviceGetAttribute": (POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuLibraryLoadData": (
        POINTER(ctypes.c_void_p),
        ctypes.c_void_p,
        POINTER(ctypes.c_int),
        POINTER(ctypes.c_void_p),
        ctypes.c_uint,
        POINTER(ctypes.c_int),
        POINTER(ctypes.c_void_p),
        ctypes.c_uint,
    ),
    "cuLibraryGetKernel": (POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_char_p),
    "cuKernelSetAttribute": (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
    "cuMemHostAlloc": (POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_uint),
    "cuLaunchKernel": (
        ctypes.c_void_p,
        *(ctypes.c_uint,) * 7,
        ctypes.c_void_p,
        POINTER(ctypes.c_void_p),
        POINTER(ctypes.c_void_p),
    ),
    "cuStreamSynchronize": (ctypes.c_void_p,),
    "cuMemFreeHost": (ctypes.c_void_p,),
    "cuLibraryUnload": (ctypes.c_void_p,),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
}


def open_device() -> None:
    """Device 0's primary context, current in this thread. Raises `driver.CudaError`, OSError without a driver."""
    context = ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDevicePrimaryCtxRetain", byref(context), 0)
    _call("cuCtxSetCurrent", context)


def close_device() -> None:
    """When all that was made in it is gone. Raises `driver.CudaError`."""
    _call("cuDevicePrimaryCtxRelease_v2", 0)


class Holder:
    """Of one process. Raises `driver.CudaError`; `Unprovable` where two blocks would find room on one SM."""

    def __init__(self) -> None:
        block, whole = _attribute(SHARED_PER_BLOCK), _attribute(SHARED_PER_SM)
        if 2 * block <= whole:
            raise Unprovable(f"an SM of {whole} bytes has room for two blocks of {block}, the most that one may have")
        self._library, self._kernel, self._shared = ctypes.c_void_p(), ctypes.c_void_p(), block
        self._memory: list[int] = []
        _call("cuLibraryLoadData", byref(self._library), PTX, None, None, 0, None, None, 0)
        _call("cuLibraryGetKernel", byref(self._kernel), self._library, b"hold")
        _call("cuKernelSetAttribute", DYNAMIC_SHARED, block, self._kernel, 0)

    def begin(self, stream: int, blocks: int) -> Held:
        """Queue as many blocks on a stream."""
        memory = ctypes.c_void_p()
        _call("cuMemHostAlloc", byref(memory), 4 * (2 * blocks + 1), PORTABLE)
        assert memory.value is not None
        self._memory.append(memory.value)
        held = Held(stream, blocks, (ctypes.c_uint32 * (2 * blocks + 1)).from_address(memory.value))
        addresses = (memory.value, memory.value + 4 * blocks, memory.value + 8 * blocks, LIMIT_NS)
        values = [ctypes.c_uint64(value) for value in addresses]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        _call("cuLaunchKernel", self._kernel, blocks, 1, 1, 1, 1, 1, self._shared, stream, pointers, None)
        return held

    def close(self) -> None:
        """When all blocks have ended: what they have said is gone, too. Raises `driver.CudaError`."""
        while self._memory:
            _call("cuMemFreeHost", self._memory.pop())
        _call("cuLibraryUnload", self._library)


class Unprovable(Exception):
    """This card's SMs cannot be told apart so."""


class Held:
    """Blocks that were queued, and their memory, which is the holder's: a process holds a few times, and ends."""

    def __init__(self, stream: int, blocks: int, words: ctypes.Array[ctypes.c_uint32]) -> None:
        self._stream, self._blocks, self._words = stream, blocks, words
        for place in range(len(words)):
            words[place] = 0

    @property
    def here(self) -> int:
        """Blocks that have begun."""
        return sum(self._words[: self._blocks])

    @property
    def gone(self) -> int:
        """Blocks that have ended, let go or by their limit."""
        return sum(self._words[self._blocks : 2 * self._blocks])

    def end(self) -> None:
        """Let them go, and wait until they are. Raises `driver.CudaError`."""
        self._words[2 * self._blocks] = 1
        _call("cuStreamSynchronize", self._stream)


def _attribute(number: int) -> int:
    value = ctypes.c_int()
    _call("cuDeviceGetAttribute", byref(value), number, 0)
    return value.value


def _call(name: str, *arguments: Any) -> None:
    driver.call(SIGNATURES, name, *arguments)
