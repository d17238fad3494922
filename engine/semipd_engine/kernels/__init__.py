"""The operations of a decoder layer: one signature (`signatures`), a room for each implementation.

`choose` picks one for a device. `SEMIPD_KERNELS` names what must run: ``auto`` (the best there is), ``reference``, or a
level of the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

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
LEVELS = ("avx2", "avx512", "avx512_bf16", "amx")
"""Of a CPU, from the slowest to the fastest. Each can also do what those before it can."""


class KernelsError(ValueError):
    """What `SEMIPD_KERNELS` asks for is unknown, or cannot run here."""


def choose(device: str = "cpu", environment: Mapping[str, str] = os.environ) -> Kernels:
    """The kernels for tensors on `device` (``cpu`` or ``cuda``). Raises `KernelsError`."""
    wanted = environment.get(VARIABLE, "") or "auto"
    if wanted not in ("auto", "reference", *LEVELS):
        raise KernelsError(f"{VARIABLE}={wanted}: expected auto, reference, {', '.join(LEVELS)}")
    if wanted == "reference":
        return ReferenceKernels(f"kernels: reference (torch), as {VARIABLE} asks")
    if wanted in LEVELS:
        raise KernelsError(f"{VARIABLE}={wanted}: this build has no compiled kernels; set auto or reference")
    return ReferenceKernels("kernels: reference (torch): this build has no compiled ones")
