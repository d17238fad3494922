"""Which of the compiled libraries runs here, and its C interface (`src/kernels.cpp`) as ctypes sees it.

One library for each level of the CPU, built with the package (`build`), chosen when the process starts: nothing is
compiled or written then. Threads are torch's own pool, by two of its exported C symbols (there since 2.10).
"""

from __future__ import annotations

import ctypes
import functools
import platform
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semipd_engine.kernels.cpu import build

FOLDER = Path(__file__).parent / "lib"
LEVELS = ("avx2", "avx512", "avx512_bf16", "amx")
"""From the slowest to the fastest; each can also do what those before it can."""
_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
FLAGS = {
    "avx2": _V3,
    "avx512": _V4,
    "avx512_bf16": _V4 | {"avx512_bf16"},
    "amx": _V4 | {"avx512_bf16", "amx_tile", "amx_bf16"},
}
"""What the kernel must list in /proc/cpuinfo for a level."""
_MATRIX: list[Any] = [c_void_p, c_int64]  # address, elements from row to row
SIGNATURES: dict[str, list[Any]] = {
    "linear": [*_MATRIX, c_int64, c_int64, c_void_p, c_int64, c_void_p, *_MATRIX, c_int32, c_int32, c_int64, c_int64],
    "attention": [
        *(c_void_p, c_int64, c_int64),
        *(c_void_p, c_void_p, c_int64),
        *(*_MATRIX, c_void_p, c_void_p),
        *(c_int64, c_int64, c_int64, c_int64, c_float),
        *(c_void_p, c_int64, c_int64),
        *(c_int64, c_int64, c_int64),
    ],
    "rms_norm": [*_MATRIX, c_void_p, c_float, *_MATRIX, *_MATRIX, c_int64, c_int64],
    "silu_mul": [*_MATRIX, *_MATRIX, c_int64, c_int64],
    "rope": [
        *(*_MATRIX, c_int64, c_int64, c_int64, c_int64),
        *(c_void_p, c_void_p, c_int64, c_int64),
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_float),
    ],
    "grouped_linear": [
        *(*_MATRIX, c_int64, c_int64, c_void_p, c_int64, c_int64, c_int64),
        *(*_MATRIX, c_int32, c_int64, c_void_p, c_void_p, c_int64, c_int64),
    ],
    "route": [
        *(*_MATRIX, c_int64, c_int64, c_int64, c_void_p, c_int32, c_int32, c_float, c_int64, c_int64),
        *(c_void_p, c_void_p, c_void_p, c_void_p),
    ],
    "combine": [*_MATRIX, c_void_p, c_int64, *_MATRIX, *_MATRIX, c_int64, c_int64],
    "latent_rope": [
        *(c_void_p, c_int64, c_int64, *_MATRIX, c_int64, c_int64, c_int64, c_int64, c_int64),
        *(c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_float, c_void_p, c_void_p, c_int64, c_int64),
    ],
    "latent_attention": [
        *(c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, *_MATRIX, c_void_p, c_void_p),
        *(c_int64, c_int64, c_int64, c_float, c_void_p, c_int64, c_int64, c_int64, c_int64),
    ],
    "pack_rows": [*_MATRIX, c_int64, c_int64, c_int64, c_void_p],
    "embedding": [c_void_p, c_int64, c_void_p, c_int64, c_int32, *_MATRIX],
}
"""Arguments of ``semipd_<name>``, after the dtype (0: float32, 1: bfloat16)."""
REBUILD = "build the package again, with g++ or clang++ (`make venv` in a clone, else `pip install --force-reinstall`)"


class CannotLoad(Exception):
    """Why a level does not run here, in a few words."""


@dataclass(frozen=True)
class Library:
    level: str
    calls: ctypes.CDLL


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What this CPU offers and the kernel permits."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), ":")
    return frozenset(line.split(":", 1)[1].split())


def runnable() -> tuple[str, ...]:
    """The levels that this CPU can run, the fastest first."""
    return tuple(level for level in reversed(LEVELS) if cpu_flags() >= FLAGS[level])


@functools.cache
def load(level: str) -> Library:
    """The level's library, started for this process and what it forks. Raises `CannotLoad`."""
    if missing := sorted(FLAGS[level] - cpu_flags()):
        raise CannotLoad(f"this CPU has no {' '.join(missing)}")
    path = FOLDER / f"libsemipd_{level}.so"
    if not path.exists():
        what = path.name if any(FOLDER.glob("*.so")) else "compiled kernels, as without a C++ compiler"
        raise CannotLoad(f"this build has no {what}: {REBUILD}")
    try:
        calls, wanted = ctypes.CDLL(str(path)), build.digest()
    except OSError as error:
        raise CannotLoad(f"{path.name}: {error}") from error
    made_of = _sources(calls)
    if made_of != wanted:
        seen = f"of sources {made_of or 'without a digest'}, not {wanted}"
        raise CannotLoad(f"the compiled kernels are of another version than the package ({seen}): {REBUILD}")
    for name, arguments in SIGNATURES.items():
        function = getattr(calls, f"semipd_{name}")
        function.argtypes, function.restype = [c_int32, *arguments], None
    calls.semipd_run.argtypes, calls.semipd_run.restype = [c_void_p, c_int64], None
    calls.semipd_start.argtypes = [c_void_p, c_void_p]
    if calls.semipd_start(*_thread_pool()):
        raise CannotLoad(f"the system does not permit {level}")
    return Library(level, calls)


def _sources(calls: ctypes.CDLL) -> str:
    """`build.digest` of what the library was made of; empty for one of a time before libraries carried it."""
    try:
        calls.semipd_sources.argtypes, calls.semipd_sources.restype = [], ctypes.c_char_p
        return str(calls.semipd_sources().decode())
    except AttributeError:
        return ""


def _thread_pool() -> tuple[int | None, int | None]:
    """Addresses of torch's `parallel_for` and of its count of threads."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    try:
        symbols = library.torch_parallel_for, library.torch_get_num_threads
    except AttributeError as error:
        raise CannotLoad(f"torch {torch.__version__} has no torch_parallel_for") from error
    return ctypes.cast(symbols[0], c_void_p).value, ctypes.cast(symbols[1], c_void_p).value
