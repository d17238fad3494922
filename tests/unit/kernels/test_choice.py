"""Which kernels this machine runs, and what is said where it could run faster ones."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.kernels.cases import LEVELS

from semipd_engine.kernels import KernelsError, choose, cpu
from semipd_engine.kernels.cpu import build
from semipd_engine.kernels.cpu.library import FLAGS, FOLDER

pytestmark = pytest.mark.unit


def test_the_best_level_is_chosen_and_says_so() -> None:
    best = choose(environment={})
    assert best.name == (LEVELS[-1] if LEVELS else "reference")
    assert best.name in best.why and not best.shortfall
    for level in cpu.LEVELS:
        if level in LEVELS:
            assert choose(environment={"SEMIPD_KERNELS": level}).name == level
        else:
            with pytest.raises(KernelsError, match=rf"SEMIPD_KERNELS={level}: this CPU has no"):
                choose(environment={"SEMIPD_KERNELS": level})


def test_without_libraries_the_twins_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("semipd_engine.kernels.cpu.library.FOLDER", tmp_path)
    with loaded_afresh():
        twins = choose(environment={})
    assert twins.name == "reference"
    assert "compiler" in twins.why or "AVX2" in twins.why
    assert ("make venv" in twins.shortfall) == bool(LEVELS), "a machine that could do no better lacks nothing"
    assert not choose(environment={"SEMIPD_KERNELS": "reference"}).shortfall, "asked for"


@contextmanager
def loaded_afresh() -> Iterator[None]:
    cpu.load.cache_clear()
    try:
        yield
    finally:
        cpu.load.cache_clear()


@pytest.mark.skipif(not LEVELS, reason="no level runs here")
def test_libraries_of_other_sources_are_told_once_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kernel was changed, and nobody compiled it: the library would compute what the sources no longer say."""
    sources = tmp_path / "src"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    (sources / ".rows.h.swp").write_bytes(b"an editor's")
    (sources / ".#rows.h").symlink_to("another editor's")
    (sources / "rows.h.orig").touch()
    (sources / "__pycache__").mkdir()
    with loaded_afresh():
        assert choose(environment={}).name == LEVELS[-1], "they are of these sources, wherever they lie"
    with (sources / "rows.h").open("a") as file:
        file.write("// changed\n")
    with loaded_afresh():
        twins = choose(environment={})
    assert twins.name == "reference"
    assert twins.shortfall.count("another version") == twins.shortfall.count("make venv") == 1
    assert f"not {build.digest()}" in twins.shortfall and "plain torch computes" in twins.shortfall


def test_a_library_of_the_time_without_a_digest_is_of_other_sources() -> None:
    assert cpu.library._sources(ctypes.CDLL(None)) == ""


@pytest.mark.skipif(not LEVELS, reason="no level runs here")
def test_a_slower_level_says_why_the_faster_one_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a CPU that could do one step more than AVX2, whatever the one here can do."""
    slower, faster = cpu.LEVELS[:2]
    name = f"libsemipd_{slower}.so"
    (tmp_path / name).symlink_to(FOLDER / name)
    monkeypatch.setattr("semipd_engine.kernels.cpu.library.FOLDER", tmp_path)
    monkeypatch.setattr("semipd_engine.kernels.cpu.library.cpu_flags", lambda: frozenset(FLAGS[faster]))
    with loaded_afresh():
        best = choose(environment={})
    assert best.name == slower
    assert f"{slower} computes" in best.shortfall and f"no libsemipd_{faster}.so" in best.shortfall
