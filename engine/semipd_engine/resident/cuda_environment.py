"""Environments of the processes that use a GPU. Pure, torch-free: they are set before torch is imported.

The resident must not be a client of MPS: a client's fatal fault reaches every client of the server, and weights and KV
pool shall survive it. Without variables CUDA looks for a daemon in its default directory, so the resident, and a worker
whose limit names no daemon, are pointed at a directory that does not exist; then they run as ordinary processes.
"""

from __future__ import annotations

from collections.abc import Mapping

NOWHERE = "/nonexistent/semipd-no-mps"
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""torch's old and new name for the settings of its allocator; expandable segments break legacy IPC."""


def without_mps(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that is no client of MPS, with the allocator settings that sharing needs."""
    kept = {name: value for name, value in environment.items() if not name.startswith("CUDA_MPS_")}
    kept["CUDA_MPS_PIPE_DIRECTORY"] = NOWHERE
    for name in ALLOCATOR:
        settings = [item for item in kept.get(name, "").split(",") if item and "expandable_segments" not in item]
        if name in kept or name == ALLOCATOR[0]:
            kept[name] = ",".join([*settings, "expandable_segments:False"])
    return kept


def worker_environment(resident: Mapping[str, str], rung: Mapping[str, str]) -> dict[str, str]:
    """A worker's environment: the resident's without its own MPS settings, and over it the rung's."""
    environment = without_mps(resident) | dict(rung)
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # results do not depend on what ran beside them
    return environment
