"""``gpu-check.pyz``: all that the check is made of, in one file that Python runs; the wheels lie beside it.

The project's sources go in as they stand in the tree, so that a machine with a GPU needs no repository; what must be
compiled does not. The same tree gives the same bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.gpu.check.circumstances import commit

ROOT = Path(__file__).resolve().parents[2]
NAME = "gpu-check.pyz"
SOURCES = (
    "agent/semipd_agent/**/*",
    "engine/semipd_engine/**/*",
    "bench/gpu/*.py",
    "e2e/lib/*.py",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/engine/*.py",
    "tests/gpu/**/*.py",
    "tests/unit/mps_stand_in.py",
    "docs/gpu/predictions.json",
    "pyproject.toml",
    "LICENSE",
)
LEFT = {".so", ".pyc"}
"""Of other machines."""


def write_archive(folder: Path) -> Path:
    """Into `folder`, which is there. Raises OSError."""
    path = folder / NAME
    with path.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for source in sources():
                _add(packed, str(source.relative_to(ROOT)), source.read_bytes())
            _add(packed, "__main__.py", (ROOT / "tests" / "gpu" / "unpack.py").read_bytes())
            _add(packed, "COMMIT", f"{commit()}\n".encode())
    path.chmod(0o755)
    return path


def sources() -> Iterator[Path]:
    found = {path for pattern in SOURCES for path in ROOT.glob(pattern)}
    for path in sorted(found):
        if path.is_file() and path.suffix not in LEFT and "__pycache__" not in path.parts:
            yield path


def _add(packed: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name)  # its time is always the same
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    packed.writestr(info, content)
