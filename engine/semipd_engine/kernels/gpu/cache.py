"""Triton's cache of compiled kernels, over a folder that came with the image: what is there is not compiled.

`ahead` makes the folder, ``SEMIPD_GPU_KERNELS`` names it. Triton's keys are hashes of sources, compiler and card, so
what is stale is never found. In the folder is Triton's launcher, too, the only part that wants a C compiler.
"""

# mypy: disable-error-code="import-untyped, no-untyped-call, misc"

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from triton import knobs
from triton.runtime.cache import FileCacheManager

VARIABLE = "SEMIPD_GPU_KERNELS"
LAUNCHER = f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"
"""Of Triton from 3.6 on, for all kernels."""


class ImageCache(FileCacheManager):
    """What is compiled here goes where Triton keeps it; what came with the image is read where it lies."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        super().__init__(key, override, dump)
        folder = os.environ.get(VARIABLE, "")
        self._image = Path(folder) / key if folder and not (override or dump) else None

    def get_file(self, filename: str) -> str | None:
        own: str | None = super().get_file(filename)
        if own is not None or self._image is None:
            return own
        path = self._image / filename
        return str(path) if path.is_file() else None

    def get_group(self, filename: str) -> dict[str, str] | None:
        own: dict[str, str] | None = super().get_group(filename)
        if own is not None or self._image is None:
            return own
        try:  # its paths are those of the machine that made it
            names = json.loads((self._image / f"__grp__{filename}").read_text())["child_paths"]
        except (OSError, ValueError, KeyError):
            return None
        return {name: str(self._image / name) for name in names if (self._image / name).is_file()}


def use() -> None:
    """From now on in this process, unless it was told of another cache."""
    if knobs.cache.manager_class in (None, FileCacheManager):
        knobs.cache.manager_class = ImageCache


def has_launcher(environment: Mapping[str, str]) -> bool:
    """Did one for this Python come with the image?"""
    folder = environment.get(VARIABLE, "")
    return bool(folder) and any(Path(folder).glob(f"*/{LAUNCHER}"))
