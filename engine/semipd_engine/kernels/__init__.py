"""The operations of a decoder layer: one signature (`signatures`), a room for each implementation.

`choose` picks one for a device. `SEMIPD_KERNELS` names what must run: ``auto`` (the best there is), ``reference``, a
level of the CPU, or ``triton`` on a GPU. Triton is imported only where its kernels run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from semipd_engine.kernels import cpu
from semipd_engine.kernels.packed import PANEL, PANELS, ROWS, PackedGroup, PackedLayout, PackedWeight
from semipd_engine.kernels.rates import Rates
from semipd_engine.kernels.reference import ReferenceKernels
from semipd_engine.kernels.signatures import (
    SEEN,
    STOPPED,
    CannotRecord,
    GatedGroupKernels,
    Kernels,
    RecordingKernels,
)

__all__ = [
    "PANEL",
    "PANELS",
    "ROWS",
    "SEEN",
    "STOPPED",
    "VARIABLE",
    "CannotRecord",
    "GatedGroupKernels",
    "Kernels",
    "KernelsError",
    "PackedGroup",
    "PackedLayout",
    "PackedWeight",
    "Rates",
    "RecordingKernels",
    "ReferenceKernels",
    "choose",
]

VARIABLE = "SEMIPD_KERNELS"


class KernelsError(ValueError):
    """What `SEMIPD_KERNELS` asks for is unknown, or cannot run here."""


def choose(device: str = "cpu", environment: Mapping[str, str] = os.environ) -> Kernels:
    """The kernels for tensors on `device` (``cpu`` or ``cuda``). Raises `KernelsError`."""
    wanted = environment.get(VARIABLE, "") or "auto"
    if wanted not in ("auto", "reference", "triton", *cpu.LEVELS):
        raise KernelsError(f"{VARIABLE}={wanted}: expected auto, reference, {', '.join(cpu.LEVELS)}, triton")
    if wanted == "triton":
        return _triton(device, environment)
    if wanted == "reference":
        return ReferenceKernels(f"kernels: reference (torch), as {VARIABLE} asks")
    if device != "cpu":
        try:
            return _triton(device, environment)
        except KernelsError as error:
            return _twins(error)
    try:
        return cpu.best() if wanted == "auto" else cpu.CpuKernels(cpu.load(wanted))
    except cpu.CannotLoad as error:
        if wanted != "auto":
            raise KernelsError(f"{VARIABLE}={wanted}: {error}; set auto or reference") from error
        return _twins(error, amiss=bool(cpu.runnable()))


def _twins(error: Exception, amiss: bool = True) -> Kernels:
    """`amiss`: this machine could run better ones."""
    shortfall = f"plain torch computes, several times slower: {error}; {VARIABLE}=reference says that it may"
    return ReferenceKernels(f"kernels: reference (torch): {error}", shortfall if amiss else "")


def _triton(device: str, environment: Mapping[str, str]) -> Kernels:
    """Those of a GPU. A worker holds them against their twins before it serves (`worker.kernel_gate`)."""
    if device != "cuda":
        raise KernelsError(f"{VARIABLE}=triton: they need --device cuda, not {device}; set auto or reference")
    try:
        from semipd_engine.kernels.gpu import TritonKernels, cache
    except ImportError as error:
        raise KernelsError(f"Triton is not here: {error}") from error
    compiler = environment.get("CC") or any(map(shutil.which, ("gcc", "clang")))
    if not (compiler or cache.has_launcher(environment)):
        raise KernelsError(
            "Triton builds its launcher with a C compiler, and there is none here, nor did a launcher come with the "
            f"image ({cache.VARIABLE}): install gcc or clang, and Python's headers"
        )
    cache.use()
    import torch

    sms = torch.cuda.get_device_properties(0).multi_processor_count
    return TritonKernels(sms, f"kernels: triton for {sms} SMs")
