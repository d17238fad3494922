"""Green contexts by the driver's own calls: streams that run on some of the device's SMs. Torch-free.

Device 0 is split into as many groups as it has, the smallest that it allows; a lane is a green context over some of
them, with one stream. None is ever made current: torch goes on in the primary context, and takes the streams from
outside. Who holds lanes is a client of no MPS percentage below 100. Source: CUDA Driver API, "Green Contexts"; the unit
tests hold `SIGNATURES` against NVIDIA's ``cuda.h``. **Not executed on a GPU yet.**
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ctypes import POINTER, byref
from dataclasses import dataclass
from typing import Any

from semipd_engine.memory import driver

SM, DEFAULT_STREAM, NON_BLOCKING = 1, 1, 1
"""CU_DEV_RESOURCE_TYPE_SM, CU_GREEN_CTX_DEFAULT_STREAM, CU_STREAM_NON_BLOCKING."""
NOT_SUPPORTED = 801
REMEDIES: Mapping[int, str] = {
    driver.MISSING: "green contexts came with the driver of CUDA 12.4",
    driver.OUT_OF_MEMORY: "each of them takes some of the device's memory: leave more of it free",
    NOT_SUPPORTED: "this driver has none for this card, or for a process that is limited already",
}
"""By CUresult, of what green contexts can meet."""


class Resource(ctypes.Structure):
    """CUdevResource, of which we read the number of SMs, and the fewest that a group may have."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("padding", ctypes.c_ubyte * 92),
        ("sm_count", ctypes.c_uint),
        ("least", ctypes.c_uint),
        ("more", ctypes.c_ubyte * 40),
    )


SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuDeviceGetDevResource": (ctypes.c_int, POINTER(Resource), ctypes.c_int),
    "cuDevSmResourceSplitByCount": (
        POINTER(Resource),
        POINTER(ctypes.c_uint),
        POINTER(Resource),
        POINTER(Resource),
        ctypes.c_uint,
        ctypes.c_uint,
    ),
    "cuDevResourceGenerateDesc": (POINTER(ctypes.c_void_p), POINTER(Resource), ctypes.c_uint),
    "cuGreenCtxCreate": (POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_int, ctypes.c_uint),
    "cuGreenCtxStreamCreate": (POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_int),
    "cuGreenCtxGetDevResource": (ctypes.c_void_p, POINTER(Resource), ctypes.c_int),
    "cuStreamDestroy_v2": (ctypes.c_void_p,),
    "cuGreenCtxDestroy": (ctypes.c_void_p,),
}
"""Parameters of every call; all return a CUresult."""


@dataclass(frozen=True)
class Lane:
    context: int
    """A CUgreenCtx."""
    stream: int
    """A CUstream."""
    sm_count: int
    """As the driver says of the green context, not what was asked for."""

    def close(self) -> None:
        """For whoever has queued nothing that is still under way, and has shown the stream to nobody. Raises
        `driver.CudaError`."""
        _call("cuStreamDestroy_v2", self.stream)
        _call("cuGreenCtxDestroy", self.context)


class Groups:
    """Of device 0, whose primary context must be there. The same split in every process that sees all of the device:
    that is by the call's own rule, and `green.probe` looks whether it is so. Raises `driver.CudaError`."""

    def __init__(self) -> None:
        whole, rest, count = Resource(), Resource(), ctypes.c_uint()
        _call("cuDeviceGetDevResource", 0, byref(whole), SM)
        least = whole.least or 1  # a driver that says nothing of it rounds up by itself
        _call("cuDevSmResourceSplitByCount", None, byref(count), byref(whole), None, 0, least)
        groups = (Resource * count.value)()
        _call("cuDevSmResourceSplitByCount", groups, byref(count), byref(whole), byref(rest), 0, least)
        self._groups = [*groups[: count.value], *([rest] if rest.sm_count else [])]
        self.sizes = tuple(int(group.sm_count) for group in self._groups)
        """SMs of each group, in the order of the split; what is left over comes last, as a smaller one."""

    def lane(self, numbers: Sequence[int]) -> Lane:
        """A green context over the groups with these numbers, which others may hold, too. Raises `driver.CudaError`,
        and then nothing of it is left."""
        desc, context, stream, given = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(), Resource()
        chosen = (Resource * len(numbers))(*(self._groups[number] for number in numbers))
        _call("cuDevResourceGenerateDesc", byref(desc), chosen, len(numbers))
        _call("cuGreenCtxCreate", byref(context), desc, 0, DEFAULT_STREAM)
        try:
            _call("cuGreenCtxGetDevResource", context, byref(given), SM)
            _call("cuGreenCtxStreamCreate", byref(stream), context, NON_BLOCKING, 0)
        except driver.CudaError:
            with suppress(driver.CudaError):  # the first error is the one to tell
                _call("cuGreenCtxDestroy", context)
            raise
        return Lane(int(context.value or 0), int(stream.value or 0), int(given.sm_count))


def explained(error: driver.CudaError) -> str:
    """With the remedy, if there is one."""
    remedy = REMEDIES.get(error.code)
    return f"{error}; {remedy}" if remedy else str(error)


def _call(name: str, *arguments: Any) -> None:
    driver.call(SIGNATURES, name, *arguments)
