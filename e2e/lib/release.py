"""The release before this tree: source, chart and images of the commit that docs/releases.md names."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.lib.kube import ROOT
from localkube import paths


class NoRelease(Exception):
    """The release cannot be had here; the message says why and what to do."""


@dataclass(frozen=True)
class Release:
    version: str
    commit: str
    tree: Path
    images: Mapping[str, str]
    """By `operator` and `engine`."""

    @property
    def chart(self) -> Path:
        return self.tree / "charts" / "semipd-operator"

    @property
    def crd(self) -> Path:
        return self.tree / "crds" / "semipdservices.semipd.io.yaml"


def newest(table: str) -> tuple[str, str]:
    """(version, commit) of the last row of docs/releases.md. Raises `NoRelease`."""
    rows: list[tuple[str, str]] = re.findall(r"^\| (\d+\.\d+\.\d+) \| `([0-9a-f]{40})` \|", table, re.MULTILINE)
    if not rows:
        raise NoRelease("docs/releases.md names no release with its commit")
    return rows[-1]


def previous() -> Release:
    """Source and images are made on first use and kept. Raises `NoRelease`."""
    version, commit = newest((ROOT / "docs" / "releases.md").read_text())
    build = [sys.executable, str(ROOT / "images" / "build"), "--commit", commit]
    answer = subprocess.run(build, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise NoRelease(f"images of {version} ({commit[:12]}) cannot be built, see above")
    operator, engine = answer.stdout.split()
    tree = paths.cache_dir() / "releases" / commit[:12]
    return Release(version, commit, tree, {"operator": operator, "engine": engine})
