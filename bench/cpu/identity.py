"""What a sample is a sample of: a digest of everything that decides what was measured, and words for people.

Two samples with one key are of the same sources (engine, agent, command line, this benchmark, its client), the same
model, part and settings, the same server command in an environment of the same packages, on the same kind of machine
under the same variables. Whatever differs makes another key, and a resumed run measures again instead of mixing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from bench.cpu.machine import cpu_flags
from bench.cpu.parts import Part
from bench.cpu.plans import WORKLOADS
from bench.cpu.schedule import LIKELIHOOD, MACHINE, Sample, Turn
from bench.cpu.servers import SERVERS, contender_named, settings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("engine/semipd_engine", "agent/semipd_agent", "cli/semipd_cli", "operator/semipd_operator"),
    *("bench/cpu", "bench/traffic", "bench/token_time.py", "e2e/lib/models.py"),
)
READERS = ("bench/cpu/compare.py", "bench/cpu/verdicts.py", "bench/cpu/report.py", "bench/cpu/__main__.py")
"""Of these sources those that only read samples."""
PACKAGES = ("torch", "transformers", "numpy", "httpx", "uvicorn", "msgspec", "uvloop", "httptools")
"""Some of them only where they are installed: what carries HTTP without them costs more."""
VARIABLES = ("SEMIPD_", "OMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "TORCH", "MALLOC_", "LD_PRELOAD", "VLLM_")
"""Beginnings of names of variables that servers inherit."""


class Identity:
    """The keys of one run. Sources are read once, when it begins."""

    def __init__(self, models: Mapping[str, Path], parts: Mapping[str, Part], root: Path = ROOT) -> None:
        self.models, self.parts = models, parts
        self._common = [sources_digest(root), machine(), versions(), _variables()]
        self._root = root

    def key(self, turn: Turn) -> str:
        server = SERVERS.get(contender_named(turn.contender).server)
        part, workload = self.parts.get(turn.part), WORKLOADS[turn.model]
        content = [
            *self._common,
            self.models[turn.model].name,
            [turn.part, part.seconds if part else 0.0, workload.rate, repr(workload.target)],
            [turn.contender, settings(server, workload.target) if server else None],
            documents_digest(self._root) if turn.part == LIKELIHOOD else "",
        ]
        return _digest([json.dumps(content, sort_keys=True).encode()])

    def holds(self, sample: Sample) -> bool:
        """It is a sample of what would be measured today; not of a part, a server or a model that is gone."""
        turn = sample.turn
        known = contender_named(turn.contender).server in {*SERVERS, MACHINE} and turn.model in self.models
        return known and sample.key == self.key(turn)


def sources_digest(root: Path = ROOT) -> str:
    """Of names and contents."""
    found: list[Path] = []
    for name in SOURCES:
        path = root / name
        found += sorted(path.rglob("*")) if path.is_dir() else [path]
    named = [path for path in found if path.is_file() and "__pycache__" not in path.parts]
    measuring = [path for path in named if str(path.relative_to(root)) not in READERS]
    return _digest(part for path in measuring for part in (str(path.relative_to(root)).encode(), path.read_bytes()))


def documents(root: Path = ROOT) -> str:
    """The text whose likelihood is judged."""
    return "\n".join(path.read_text() for path in sorted((root / "docs").glob("*.md")))


def documents_digest(root: Path = ROOT) -> str:
    return _digest([documents(root).encode()])


@cache
def machine() -> str:
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), platform.processor())
    levels = " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in cpu_flags())
    memory = psutil.virtual_memory().total / 2**30
    return f"{name} ({levels}), {len(os.sched_getaffinity(0))} CPUs, {memory:.0f} GiB"


@cache
def versions() -> Mapping[str, str]:
    """By name; empty of a package that is not installed."""
    found = {"python": platform.python_version(), "linux": platform.release()}
    for name in PACKAGES:
        found[name] = ""
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    peers = {server.environment for server in SERVERS.values() if server.environment}
    return found | {peer.name: peer.version for peer in sorted(peers, key=lambda peer: peer.name)}


def commit(root: Path = ROOT) -> str:
    """Of the tree, with a `+` where it is not what the commit holds; empty where there is no git."""
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(VARIABLES) and name != "SEMIPD_CACHE"}


def _digest(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:16]
