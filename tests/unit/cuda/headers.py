"""NVIDIA's ``cuda.h`` as its PyPI packages carry it, and what is compiled against it."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import files
from pathlib import Path

from semipd_engine.kernels.cpu.build import compiler

HERE = Path(__file__).parent
PACKAGES = ("nvidia-cuda-runtime", "triton")
"""The toolkit that torch is built with, and a newer one."""


@cache
def include(package: str) -> Path:
    """The folder of the package's ``cuda.h``."""
    found = [file for file in files(package) or [] if file.parts[-2:] == ("include", "cuda.h")]
    assert found, f"{package} carries no cuda.h any more"
    return Path(str(found[0].locate())).parent


def compile_cpp(source: Path, target: Path, package: str, *flags: str) -> Path:
    """Raises CalledProcessError, with the compiler's words on stderr."""
    command = compiler()
    assert command is not None, "no C++ compiler: g++, or pip install ziglang"
    subprocess.run(
        [*command, "-std=c++17", *flags, f"-I{include(package)}", str(source), "-o", str(target)], check=True
    )
    return target
