"""A list of kernel calls that is kept and replayed: the threads are woken once for it, and Python is done with it.

A call is `WORDS` words as `semipd_run` reads them (`src/kernels.cpp`): the number of its function, then its arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ctypes import c_float

from semipd_engine.kernels.cpu.library import SIGNATURES

WORDS = 26
BYTES = WORDS * 8
FUNCTIONS = (
    *("linear", "attention", "rms_norm", "silu_mul", "rope"),
    *("grouped_linear", "route", "combine", "latent_rope", "latent_attention"),
)
"""In the order of their numbers."""
_FORMATS = {
    name: (number, struct.Struct("<qq" + "".join("d" if kind is c_float else "q" for kind in SIGNATURES[name])))
    for number, name in enumerate(FUNCTIONS)
}


def encode(name: str, arguments: Sequence[float | None]) -> bytes:
    """One call. Raises KeyError for a function that a tape cannot hold."""
    number, layout = _FORMATS[name]
    return layout.pack(number, *(0 if value is None else value for value in arguments)).ljust(BYTES, b"\0")
