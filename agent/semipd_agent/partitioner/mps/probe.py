"""``python probe.py [--context]``: the smallest CUDA client, by the driver's own library. Imported by nobody.

Prints one line of JSON: ``{"sm_count": 66, "error": 0}``. The count is what a client under this environment sees;
`--context` also makes and drops a context, which a faulted MPS server refuses. Errors are the driver's numbers
(`CUresult`); -1: there is no driver. It runs no kernel and needs no torch.
"""

from __future__ import annotations

import ctypes
import json
import sys

LIBRARY = "libcuda.so.1"
NO_DRIVER = -1
MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
SIGNATURES = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
}
"""Parameters of every call; all return a CUresult. The unit tests hold them against NVIDIA's own ``cuda.h``."""


class _CudaError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def probe(*, context: bool) -> dict[str, int]:
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        return {"sm_count": 0, "error": NO_DRIVER}

    def call(name: str, *arguments: object) -> None:
        function = getattr(cuda, name)
        function.argtypes, function.restype = SIGNATURES[name], ctypes.c_int
        if code := int(function(*arguments)):
            raise _CudaError(code)

    count, device = ctypes.c_int(0), ctypes.c_int(0)
    try:
        call("cuInit", 0)
        call("cuDeviceGet", ctypes.byref(device), 0)
        if context:
            handle = ctypes.c_void_p()
            call("cuDevicePrimaryCtxRetain", ctypes.byref(handle), device)
        call("cuDeviceGetAttribute", ctypes.byref(count), MULTIPROCESSOR_COUNT, device)
        if context:
            call("cuDevicePrimaryCtxRelease_v2", device)
    except _CudaError as e:
        return {"sm_count": count.value, "error": e.code}
    return {"sm_count": count.value, "error": 0}


if __name__ == "__main__":
    print(json.dumps(probe(context="--context" in sys.argv[1:])), flush=True)
