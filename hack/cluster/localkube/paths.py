"""Where things are kept: a cache outside the clone, and in it the live cluster. Creates nothing."""

import os
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
TOOLS_MODULES = REPOSITORY / "hack" / "tools"


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """`$SEMIPD_CACHE`, else `$XDG_CACHE_HOME/semipd`, else `~/.cache/semipd`: may be deleted while no cluster is up."""
    if override := env.get("SEMIPD_CACHE"):
        return Path(override).absolute()
    return Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "/root")) / ".cache").absolute() / "semipd"


def cluster_dir(env: Mapping[str, str] = os.environ) -> Path:
    """`$SEMIPD_RUN`, else `CACHE/cluster`: all that a live cluster writes. Another value is another cluster.

    Must share a file system with `buildah_root`: image layers travel between the two as hard links.
    """
    return Path(env.get("SEMIPD_RUN") or cache_dir(env) / "cluster").absolute()


def buildah_root(env: Mapping[str, str] = os.environ) -> Path:
    """The store in which `images/build` keeps layers and images."""
    return cache_dir(env) / "images" / "storage"
