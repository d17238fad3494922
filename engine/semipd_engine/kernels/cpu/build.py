"""Compiles `src` once for each level into ``lib``. Run when the package is built, never when it starts.

Standard library only: the build hook (`hatch_build.py`) and ``make venv`` load it by its path. Libraries are kept in a
cache under a key of their sources, flags and compiler, so a second build of the same sources copies files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SOURCES, FOLDER = HERE / "src", HERE / "lib"
SUFFIXES = (".cpp", ".h")
LEVELS: dict[str, tuple[str, ...]] = {
    "avx2": ("x86-64-v3",),
    "avx512": ("x86-64-v4",),
    "avx512_bf16": ("x86-64-v4", "avx512bf16"),
    "amx": ("x86-64-v4", "avx512bf16", "amx-tile", "amx-bf16"),
}
"""The architecture that each level is compiled for, and what it has beyond it."""
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-fno-threadsafe-statics",
)
EXACT = ("-ffp-contract=off", "-fno-math-errno")
"""The sources say themselves where a product and a sum are fused."""
ZIG = "ziglang==0.15.2"
"""The compiler from PyPI, where the system has none."""


def digest() -> str:
    """Of the sources, and of how they are compiled. A library carries that of its own as ``semipd_sources()``.

    What an editor or a merge leaves beside the sources is none of them.
    """
    found = hashlib.sha256(repr((FLAGS, EXACT, LEVELS)).encode())
    for path in sorted(path for path in SOURCES.glob("[!.]*") if path.suffix in SUFFIXES):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def supported() -> bool:
    """There are kernels for this kind of machine."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def compiler() -> list[str] | None:
    """The command of a C++ compiler: $CXX, g++, clang++, or PyPI's zig in this environment."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name.split()
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17"]
    return None


def build(command: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """Compile every level, or take it from the cache, into `folder`. Raises CalledProcessError; the compiler has said
    why on stderr."""
    cache = _cache() / _key(command)
    if os.access(cache, os.R_OK | os.X_OK):  # false, too, where this user may not enter
        return _take(cache, folder)
    with _beside(cache) as private:
        made = Path(private) / cache.name
        made.mkdir()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda level: _compile(command, level, made), LEVELS))
        found = _take(made, folder)
        with contextlib.suppress(OSError):  # another build of the same sources was faster, or nothing can be kept
            made.rename(cache)  # whole or not at all: whoever sees it takes what is in it
    return found


def _beside(cache: Path) -> tempfile.TemporaryDirectory[str]:
    """Where nothing can be kept, what is compiled is of use once."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=cache.parent)
    except OSError:
        return tempfile.TemporaryDirectory()


def _take(made: Path, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for path in made.iterdir():
        beside = folder / f".{path.name}.{os.getpid()}"
        shutil.copyfile(path, beside)
        beside.rename(folder / path.name)  # a process that has the old one mapped keeps it
    return sorted(folder.glob("*.so"))


def _compile(command: Sequence[str], level: str, folder: Path) -> None:
    out = folder / f"libsemipd_{level}.so"
    flags = (*FLAGS, *EXACT, *_level_flags(command, level), f'-DSEMIPD_SOURCES="{digest()}"')
    subprocess.run([*command, *flags, "-o", out, SOURCES / "kernels.cpp"], check=True)


def _level_flags(command: Sequence[str], level: str) -> list[str]:
    base, *more = LEVELS[level]
    if "ziglang" in command:
        return ["-mcpu=" + "+".join((base, *more)).replace("-", "_")]
    return [f"-march={base}", *(f"-m{name}" for name in more)]


def _key(command: Sequence[str]) -> str:
    version = subprocess.run(
        [*command, "--version"], capture_output=True, check=False
    ).stdout  # zig: 1 if cross-building
    return hashlib.sha256(repr((digest(), list(command[1:]))).encode() + version).hexdigest()[:16]


def _cache() -> Path:
    home = os.environ.get("SEMIPD_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semipd"
    return Path(home) / "kernels"


if __name__ == "__main__":
    found = compiler() if supported() else None
    if found is None:
        sys.exit("build: kernels for the CPU need Linux on x86-64 and a C++ compiler (g++, or pip install ziglang)")
    print(*build(found), sep="\n")
