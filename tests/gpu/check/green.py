"""Green contexts by the driver's own calls, through ctypes: streams that run on some of the device's SMs.

The device is split into two groups; each becomes a green context with one stream. None is ever made current: torch goes
on in the primary context, and takes the streams from outside. Whoever holds these streams has to be a client of no MPS
percentage. Source: CUDA Driver API, "Green Contexts"; the unit tests hold `SIGNATURES` against NVIDIA's ``cuda.h``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER
from functools import lru_cache
from typing import Any

LIBRARY = "libcuda.so.1"
SM, DEFAULT_STREAM, NON_BLOCKING = 1, 1, 1
"""CU_DEV_RESOURCE_TYPE_SM, CU_GREEN_CTX_DEFAULT_STREAM, CU_STREAM_NON_BLOCKING."""


class GreenError(Exception):
    """A driver call failed, or the driver is too old to have it."""


class Resource(ctypes.Structure):
    """CUdevResource, of which we read the number of SMs."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("padding", ctypes.c_ubyte * 92),
        ("sm_count", ctypes.c_uint),
        ("more", ctypes.c_ubyte * 44),
    )


SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuGetErrorName": (ctypes.c_int, POINTER(ctypes.c_char_p)),
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
}
"""Parameters of every call; all return a CUresult."""


class Lane:
    """A stream of a green context, and the SMs that it was given."""

    def __init__(self, resource: Resource) -> None:
        desc, context, stream, given = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(), Resource()
        _call("cuDevResourceGenerateDesc", ctypes.byref(desc), ctypes.byref(resource), 1)
        _call("cuGreenCtxCreate", ctypes.byref(context), desc, 0, DEFAULT_STREAM)
        _call("cuGreenCtxStreamCreate", ctypes.byref(stream), context, NON_BLOCKING, 0)
        _call("cuGreenCtxGetDevResource", context, ctypes.byref(given), SM)
        assert stream.value is not None
        self.stream, self.sm_count = int(stream.value), int(given.sm_count)


def split(at_least: int) -> tuple[Lane, Lane]:
    """Of device 0: a group of the fewest SMs that the device gives for `at_least`, and all others. The primary context
    must be there. Raises `GreenError`."""
    whole, first, rest, groups = Resource(), Resource(), Resource(), ctypes.c_uint(1)
    _call("cuDeviceGetDevResource", 0, ctypes.byref(whole), SM)
    _call(
        "cuDevSmResourceSplitByCount",
        *(ctypes.byref(first), ctypes.byref(groups), ctypes.byref(whole), ctypes.byref(rest), 0, at_least),
    )
    if groups.value != 1 or not rest.sm_count:
        raise GreenError(f"a group of {at_least} SMs leaves none of {whole.sm_count} for another")
    return Lane(first), Lane(rest)


def _call(name: str, *arguments: Any) -> None:
    try:
        function = getattr(_driver(), name)
    except AttributeError as error:
        raise GreenError(f"this driver has no {name}: it is older than CUDA 12.4's") from error
    function.argtypes, function.restype = SIGNATURES[name], ctypes.c_int
    if code := int(function(*arguments)):
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise GreenError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(LIBRARY)
