"""The kernels' cache: what a build leaves in it is whole, whatever became of the build."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from semipd_engine.kernels.cpu import build

pytestmark = pytest.mark.unit


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Levels that the compiler, which only writes their names, was asked for."""
    asked: list[str] = []

    def compile_(command: object, level: str, folder: Path) -> None:
        asked.append(level)
        (folder / f"libsemipd_{level}.so").write_text(level)

    monkeypatch.setattr(build, "_compile", compile_)
    monkeypatch.setenv("SEMIPD_CACHE", str(tmp_path / "cache"))
    return asked


def test_a_build_whose_copy_fails_leaves_no_half_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: list[str]
) -> None:
    copies = []
    copyfile = shutil.copyfile

    def full(source: Path, to: Path, **options: bool) -> Path:
        copies.append(to)
        if len(copies) == 2:
            raise OSError("no space left on device")
        return copyfile(source, to, **options)

    with monkeypatch.context() as patch, pytest.raises((OSError, shutil.Error)):
        patch.setattr(shutil, "copyfile", full)
        build.build(["true"], tmp_path / "lib")
    found = build.build(["true"], tmp_path / "lib")
    assert [path.name for path in found] == sorted(f"libsemipd_{level}.so" for level in build.LEVELS)
    assert [path.read_text() for path in found] == sorted(build.LEVELS)


def test_equal_sources_are_compiled_once(tmp_path: Path, compiled: list[str]) -> None:
    for folder in ("one", "other"):
        assert len(build.build(["true"], tmp_path / folder)) == len(build.LEVELS)
    assert sorted(compiled) == sorted(build.LEVELS)
    assert [path.name for path in (tmp_path / "cache" / "kernels").iterdir()] == [build._key(["true"])]


@pytest.mark.parametrize("refused", [NotADirectoryError, PermissionError])
def test_kernels_are_built_where_no_cache_can_be_kept(
    refused: type[OSError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: list[str]
) -> None:
    """Root may enter every folder: what others meet is played."""
    closed, reached = str(tmp_path / "closed"), os.stat

    def stat(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(closed):
            raise refused(path)
        return reached(path, *rest, **options)

    (tmp_path / "closed").touch()
    monkeypatch.setenv("SEMIPD_CACHE", closed)
    monkeypatch.setattr(os, "stat", stat)
    for folder in ("one", "other"):
        assert len(build.build(["true"], tmp_path / folder)) == len(build.LEVELS)
    assert sorted(compiled) == sorted(2 * [*build.LEVELS])


def test_sources_want_nothing_of_the_cpp_library() -> None:
    """Where there is no g++, as in an image, the compiler from PyPI has no such headers for the way it is called."""
    wanted = re.findall(r"#include <(.+)>", "".join(p.read_text() for p in build.SOURCES.glob("*.[hc]*")))
    assert wanted and all(name.endswith(".h") for name in wanted)
