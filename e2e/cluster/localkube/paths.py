"""Where things are kept: a cache outside the clone, a run folder for the live cluster. Creates nothing."""

import os
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
TOOLS_MODULES = REPOSITORY / "e2e" / "tools"


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """`$SEMIPD_CACHE`, else `$XDG_CACHE_HOME/semipd`, else `~/.cache/semipd`: content-addressed, may be deleted at any time."""
    if override := env.get("SEMIPD_CACHE"):
        return Path(override).absolute()
    return Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "/root")) / ".cache").absolute() / "semipd"


def run_dir(env: Mapping[str, str] = os.environ) -> Path:
    """`$SEMIPD_RUN`, else `/run/semipd-e2e`: small state of the live cluster, gone after `down`."""
    return Path(env.get("SEMIPD_RUN") or "/run/semipd-e2e").absolute()


def buildah_root(env: Mapping[str, str] = os.environ) -> Path:
    """buildah's store. Shares a file system with `containerd_root`: layers travel between them as hard links."""
    return cache_dir(env) / "images" / "storage"


def containerd_root(env: Mapping[str, str] = os.environ) -> Path:
    """containerd's store; outlives the cluster, so that a second `up` finds its images already there."""
    return cache_dir(env) / "containerd"
