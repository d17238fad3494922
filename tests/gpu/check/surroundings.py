"""What the parts find around them: their environment, and a clone that is as it was when they are gone.

Standard library only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gpu.check.circumstances import ROOT

ROOMS = ("agent", "engine", "tests", "e2e", "bench")
"""Where the parts' sources lie."""


def surroundings(unpacked: Path | None) -> dict[str, str]:
    """The parts' environment: no MPS variables of others, and the repository and the wheels as packages.

    A `CUDA_MPS_PIPE_DIRECTORY` that an image or a shell has set would make our processes clients of it, or of nobody.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_MPS_")}
    packages = [str(ROOT), *(str(ROOT / room) for room in ("agent", "engine"))]
    packages += [str(unpacked)] if unpacked is not None else []
    before = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
    return environment | {"PYTHONPATH": os.pathsep.join([*before, *packages]), "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def no_bytecode_left(root: Path) -> Iterator[None]:
    """Remove the `__pycache__` folders that were not there before. The parts write them: without, each of their
    processes would compile the wheels anew."""
    before = set(_bytecode(root))
    try:
        yield
    finally:
        for folder in set(_bytecode(root)) - before:
            shutil.rmtree(folder, ignore_errors=True)


def _bytecode(root: Path) -> Iterator[Path]:
    for room in ROOMS:
        yield from (root / room).rglob("__pycache__")
