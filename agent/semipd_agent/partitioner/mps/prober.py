"""The probe: the smallest client of an MPS daemon, and what its answer says.

`Prober` runs it (`probe.py`, a script of its own) under a client's environment. It starts no daemon, decides nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from semipd_agent.children import Children, ChildTimeout
from semipd_agent.partitioner.mps.daemon import Daemon
from semipd_agent.partitioner.mps.green import TEXT, Green, Refused
from semipd_agent.partitioner.mps.ladder import LADDER, WHOLE, Timing, plausible
from semipd_agent.partitioner.mps.programs import OUTSIDE_MPS, Programs, surroundings

log = logging.getLogger(__name__)

OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY: the server answered; there was no room for one context more."""
_MOST_LOGGED = 4000
"""Characters of what the self-test of green contexts has said, its last ones."""


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

    async def green(self, daemon: Daemon) -> Green:
        """The self-test of green contexts, as clients of the daemon. Raises `Refused`: the daemon's server is to be
        looked at then, for the self-test kills a client that hangs, and is killed with its clients if it hangs itself.
        """
        command = [*self._programs.green, TEXT]
        try:
            done = await self._children.run(command, surroundings(daemon.variables(WHOLE)), seconds=self._timing.green)
        except (ChildTimeout, OSError) as e:
            raise Refused("GreenProbeFailed", str(e)) from e
        try:
            found = Green.read(json.loads(done.output.strip().splitlines()[-1]))
            if done.status != 0:
                raise ValueError("it failed behind its answer")
        except Refused:
            log.error("the self-test of green contexts said: %s", done.output[-_MOST_LOGGED:])
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
            log.error("the self-test of green contexts said: %s", done.output[-_MOST_LOGGED:])
            raise Refused("GreenProbeFailed", f"exit status {done.status}, {type(e).__name__}: {e}") from e
        return found

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
