"""The programs that stand for MPS, the environment that they and their clients get, and the probe: the smallest client.

`Prober` runs the probe (`probe.py`, a script of its own) under a client's environment and reads its answer. Nothing
here starts a daemon or decides what an answer means.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from semipd_agent.children import Children, ChildTimeout
from semipd_agent.partitioner.mps.ladder import LADDER, WHOLE, Timing, plausible

if TYPE_CHECKING:
    from semipd_agent.partitioner.mps.daemon import Daemon

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


OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY: the server answered; there was no room for one context more."""


@dataclass(frozen=True)
class Probed:
    sm_count: int
    error: int
    """The driver's CUresult; 0 is success."""


class ProbeFailed(Exception):
    """The probe did not answer, or the driver refused it."""


class Prober:
    def __init__(self, programs: Programs, children: Children, timing: Timing) -> None:
        self._programs = programs
        self._timing = timing
        self._children = children
        self._total = 0
        self.context_needed = False
        """Did a limit show only once the client had a context? Known after `counts`."""

    async def total(self) -> int:
        """SMs that a process outside MPS sees. Raises `ProbeFailed`."""
        if not self._total:
            self._total = (await self._probe(OUTSIDE_MPS, self._timing.first_probe)).sm_count
        return self._total

    async def counts(self, daemon: Daemon) -> dict[int, int]:
        """SMs that a client of the daemon sees on each rung. Raises `ProbeFailed`.

        A limit may show only once a client has a context. Contexts cost memory, so they are made where it does not show
        without one, and one after the other.
        """
        total = await self.total()
        whole = await self._probe(daemon.variables(WHOLE), self._timing.first_probe, context=True)
        counts = {WHOLE: whole.sm_count}
        below = [rung for rung in LADDER if rung != WHOLE]
        found = await asyncio.gather(*(self._probe(daemon.variables(rung), self._timing.probe) for rung in below))
        for rung, probed in zip(below, found, strict=True):
            counts[rung] = probed.sm_count
            if not plausible(total, rung, probed.sm_count):
                again = await self._probe(daemon.variables(rung), self._timing.probe, context=True)
                counts[rung] = again.sm_count
                self.context_needed |= again.sm_count != probed.sm_count
        return counts

    async def serves(self, daemon: Daemon) -> None:
        """Does the daemon's server still take a client? Raises `ProbeFailed`."""
        await self._probe(daemon.variables(WHOLE), self._timing.probe, context=True, accept=(0, OUT_OF_MEMORY))

    async def _probe(
        self, variables: Mapping[str, str], seconds: float, *, context: bool = False, accept: tuple[int, ...] = (0,)
    ) -> Probed:
        command = [*self._programs.probe, *(["--context"] if context else [])]
        try:
            done = await self._children.run(command, surroundings(variables), seconds=seconds)
            fields = json.loads(done.output.strip().splitlines()[-1])
            probed = Probed(int(fields["sm_count"]), int(fields["error"]))
        except ChildTimeout as e:
            raise ProbeFailed(
                f"the probe client hung: {e}; MPS makes a client wait without a word while it serves another user, and "
                f"ours is {os.getuid()}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
            raise ProbeFailed(f"the probe client failed: {type(e).__name__}: {e}") from e
        if probed.error not in accept:
            raise ProbeFailed(f"the driver refused the probe client with CUresult {probed.error}")
        return probed
