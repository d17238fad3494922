"""The stand-in for the driver, built."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cuda.headers import HERE, PACKAGES, compile_cpp

FLAGS = ("-shared", "-fPIC", "-O1", "-pthread", "-Wall", "-Werror")


def libcuda(folder: Path, *flags: str) -> str:
    """Its path. ``-DOLD``: of a driver without green contexts."""
    return str(compile_cpp(HERE / "libcuda_stub.cpp", folder / "libcuda.so.1", PACKAGES[0], *FLAGS, *flags))
