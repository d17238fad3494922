"""The operations of a decoder layer: one signature (`signatures`), a room for each implementation.

`choose` picks one for a device. `SEMIPD_KERNELS` names what must run: ``auto`` (the best there is), ``reference``, or a
level of the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from semipd_engine.kernels import cpu
from semipd_engine.kernels.reference import ReferenceKernels
from semipd_engine.kernels.signatures import (
    PANEL,
    PANELS,
    ROWS,
    CannotRecord,
    Kernels,
    PackedLayout,
    PackedWeight,
    RecordingKernels,
)

__all__ = [
    "PANEL",
    "PANELS",
    "ROWS",
    "VARIABLE",
    "CannotRecord",
    "Kernels",
    "KernelsError",
    "PackedLayout",
    "PackedWeight",
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
    if wanted not in ("auto", "reference", *cpu.LEVELS):
        raise KernelsError(f"{VARIABLE}={wanted}: expected auto, reference, {', '.join(cpu.LEVELS)}")
    if wanted == "reference":
        return ReferenceKernels(f"kernels: reference (torch), as {VARIABLE} asks")
    if device != "cpu":
        return ReferenceKernels("kernels: reference (torch)")
    try:
        return cpu.best() if wanted == "auto" else cpu.CpuKernels(cpu.load(wanted))
    except cpu.CannotLoad as error:
        if wanted != "auto":
            raise KernelsError(f"{VARIABLE}={wanted}: {error}; set auto or reference") from error
        return ReferenceKernels(f"kernels: reference (torch): {error}")
