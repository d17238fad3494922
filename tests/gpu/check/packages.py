"""Do the packages load that a run needs? One made for another Python is found, and fails only when imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path, PurePath

IMAGE = ("torch", "triton", "numpy")
"""An image's own, which no folder of wheels brings."""


def modules(folder: Path) -> list[str]:
    """What the wheels that were unpacked into `folder` bring, by the names by which Python imports it, sorted."""
    return sorted({name for found in distributions(path=[str(folder)]) for name in _tops(found.files or ())})


def _tops(files: Iterable[PurePath]) -> Iterator[str]:
    for file in files:
        top, *rest = file.parts
        if rest[:1] == ["__init__.py"] and top.isidentifier():
            yield top
        elif not rest and file.suffix in (".py", ".so") and top.split(".")[0].isidentifier():
            yield top.split(".")[0]


def load(names: Iterable[str]) -> tuple[int, list[str]]:
    """How many were imported, and a line for each that failed; for want of an image's own package is no failure."""
    loaded, wrong = 0, []
    for name in names:
        try:
            import_module(name)
            loaded += 1
        except Exception as error:  # whatever a package does when it is imported
            if not (isinstance(error, ModuleNotFoundError) and error.name in IMAGE):
                wrong.append(f"{name}: {type(error).__name__}: {error}".partition("\n")[0])
    return loaded, wrong


def image() -> list[str]:
    """What of the image's is not here."""
    return [name for name in IMAGE if find_spec(name) is None]
