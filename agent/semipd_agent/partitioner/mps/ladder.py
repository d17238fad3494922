"""The numbers of this room: the rungs, which SM counts can stand behind one, and how long MPS may take for what. Pure.

The rungs are the few percentages that workers are started under.

NVIDIA documents that a percentage is rounded down to an amount that the hardware supports, but no formula; on one GPU
with 188 SMs 50, 25 and 10 % were seen as 94, 46 and 18 SMs (whole pairs). So counts are not computed but measured, by a
probe on each rung. `plausible` is what a measured count must satisfy for a percentage to have had effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semipd_engine.contract import Split

LADDER = (10, 20, 30, 40, 50, 60, 80, 100)
"""Percent. Few, for each rung in use is a process with a context; fine where it matters (a small share)."""
WHOLE = 100
GRANULE = 8
"""SMs: the coarsest unit in which NVIDIA documents SMs to be handed out (Hopper and later)."""
SMALLEST = 2
"""SMs: a limit below one pair of SMs gives one pair."""


def nearest(percent: int, rungs: Sequence[int] = LADDER) -> int:
    """The nearest rung; of two that are equally near the larger, because a ceiling too high harms less."""
    return min(rungs, key=lambda rung: (abs(rung - percent), -rung))


def quantize(want: Split, rungs: Sequence[int] = LADDER) -> Split:
    return Split(prefill=nearest(want.prefill, rungs), decode=nearest(want.decode, rungs))


def plausible(total: int, percent: int, seen: int) -> bool:
    """May a client that is limited to `percent` of `total` SMs see `seen` of them? Rounded down by under a granule."""
    exact = total * percent / 100
    return exact - GRANULE < seen <= max(exact, SMALLEST) and seen > 0


def implausible(total: int, counts: Mapping[int, int]) -> str | None:
    """What is wrong with the SM counts measured for each rung; None: the percentages had effect.

    `total`: SMs that a process outside MPS sees.
    """
    for percent, seen in sorted(counts.items()):
        if not plausible(total, percent, seen):
            return (
                f"a client limited to {percent} % saw {seen} of {total} SMs: the limit has no effect, or another "
                "limit lies above it"
            )
    return None


@dataclass(frozen=True)
class Timing:
    """Seconds. The values are the watchdogs'; tests bring quicker ones."""

    command: float = 5.0
    """One run of the control program."""
    answer: float = 10.0
    """From the daemon's start to its first answer."""
    server: float = 60.0
    """For `start_server`, which may answer only when the server is there, and again from its answer to ACTIVE. Without
    a persistence daemon the driver is initialised first."""
    first_probe: float = 60.0
    """The first client waits for the driver, too; one of another user than the server's would wait for ever."""
    probe: float = 15.0
    green: float = 90.0
    """For the self-test of green contexts: two clients, a few seconds in all once the driver is there. It gives up by
    itself before (`green.probe.SECONDS`), and leaves nobody behind; this is for when it cannot."""
    terminate: float = 6.0
    """For `terminate_client`, which waits for the client's kernels."""
    end: float = 5.0
    """From asking a daemon to end, or SIGTERM, to the next harder means."""
    check: float = 2.0
    """Between two looks at the daemon in force."""
    initializing: float = 15.0
    """A server that does not come back to ACTIVE in this time is lost."""
    longest_delay: float = 30.0
    """Between two starts, after losses in a row."""
    healthy: float = 300.0
    """A daemon that lived this long starts the count of losses anew."""
    stall: float = 10.0
    """Silence of a worker, shortly after another one's death, that is laid to the server."""
    retired: float = 120.0
    """Longest time that an old server stays for clients that do not move, once its successor is in force."""
