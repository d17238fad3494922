"""The programs that stand for MPS, where they are, and the environment that they and their clients get.

Starts nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semipd_agent.partitioner.mps import green

CONTROL = "nvidia-cuda-mps-control"
SERVER = "nvidia-cuda-mps-server"
PLACES = (
    "/usr/bin",
    "/usr/local/bin",
    "/usr/local/nvidia/bin",
    "/usr/local/cuda*/bin",
    "/usr/lib/nvidia*/bin",
    "/opt/nvidia/*/bin",
)
"""Where drivers and container runtimes put the programs, when they are not on the PATH."""

PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
LOG_DIRECTORY = "CUDA_MPS_LOG_DIRECTORY"
PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"

OUTSIDE_MPS = {PIPE_DIRECTORY: "/nonexistent/mps"}
"""Environment of a process that must not become anybody's MPS client. Without it CUDA would try /tmp/nvidia-mps, where
the container runtime shows a daemon of the host."""

PROBE = (sys.executable, "-I", str(Path(__file__).with_name("probe.py")))


@dataclass(frozen=True)
class Programs:
    """Commands by their paths. `find` takes the driver's; tests bring stand-ins."""

    control: str
    server: str
    probe: tuple[str, ...] = PROBE
    green: tuple[str, ...] = green.PROBE
    """The self-test of green contexts."""

    @classmethod
    def find(cls, probe: Sequence[str] | None = None) -> Programs:
        """From the PATH, then from `PLACES`; a program that is missing is an empty string. `probe` takes the place of
        our own."""
        return cls(_find(CONTROL), _find(SERVER), tuple(probe or PROBE))

    @property
    def missing(self) -> list[str]:
        return [name for name, path in ((CONTROL, self.control), (SERVER, self.server)) if not path]


def _find(name: str) -> str:
    places = (str(place) for pattern in PLACES for place in sorted(Path("/").glob(pattern.lstrip("/"))))
    return shutil.which(name) or next((found for place in places if (found := shutil.which(name, path=place))), "")


def environment(pipe: Path, log: Path, percent: int | None = None) -> dict[str, str]:
    """The MPS variables of a daemon (no percent) or of a client on the rung `percent`."""
    variables = {PIPE_DIRECTORY: str(pipe), LOG_DIRECTORY: str(log)}
    return variables if percent is None else variables | {PERCENTAGE: str(percent)}


def surroundings(variables: Mapping[str, str]) -> dict[str, str]:
    """Our own environment with no other MPS variables than `variables`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_MPS_")}
    return ours | dict(variables)
