"""The folder of wheels: unpacked for the parts, or refused in one line that names the wheel. Standard library only, but
for `packaging`, which tells a wheel's tags and comes with pip or lies in the folder itself."""

from __future__ import annotations

import sys
import zipfile
import zlib
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType


class Unusable(Exception):
    """What was given cannot be used; the message is one line, with the remedy."""


def unpack(wheels: Path, into: Path) -> None:
    """Raises Unusable: no folder, a wheel that is not whole, or one that this Python cannot load."""
    if not wheels.is_dir():
        raise Unusable(f"--wheels: no folder {wheels}; `make gpu-wheels` makes one")
    found = sorted(wheels.glob("*.whl"))
    if strange := others(found):
        this = f"{sys.version_info.major}.{sys.version_info.minor}"
        more = f" and {len(strange) - 1} more" if strange[1:] else ""
        raise Unusable(f"--wheels: {strange[0]}{more} cannot be loaded here; `make gpu-wheels PYTHON_THERE={this}`")
    for wheel in found:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(into)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise Unusable(f"--wheels: {wheel.name} is not a whole wheel ({error}); copy or make it again") from None


def others(wheels: list[Path]) -> list[str]:
    """Names of the wheels for another Python or machine than this one."""
    tags, names = _packaging(wheels, "tags"), _packaging(wheels, "utils")
    if tags is None or names is None:  # then the first part that imports one says so
        return []
    mine, found = set(tags.sys_tags()), []
    for wheel in wheels:
        try:
            of = names.parse_wheel_filename(wheel.name)[3]
        except ValueError:  # InvalidWheelFilename
            of = frozenset()
        if mine.isdisjoint(of):
            found.append(wheel.name)
    return found


def _packaging(wheels: list[Path], module: str) -> ModuleType | None:
    """A module of `packaging`: installed here, pip's own, or out of its wheel. None: nowhere."""
    for name in ("packaging", "pip._vendor.packaging"):
        with suppress(ImportError):
            return import_module(f"{name}.{module}")
    path = [str(wheel) for wheel in wheels if wheel.name.startswith("packaging-")]
    sys.path += path
    try:
        return import_module(f"packaging.{module}")
    except (ImportError, zipfile.BadZipFile):
        return None
    finally:
        del sys.path[len(sys.path) - len(path) :]
