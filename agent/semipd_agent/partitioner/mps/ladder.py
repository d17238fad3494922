"""The rungs: the few percentages that workers are started under, and which SM counts can stand behind one. Pure.

NVIDIA documents that a percentage is rounded down to an amount that the hardware supports, but no formula; on one GPU
with 188 SMs 50, 25 and 10 % were seen as 94, 46 and 18 SMs (whole pairs). So counts are not computed but measured, by a
probe on each rung. `plausible` is what a measured count must satisfy for a percentage to have had effect.
"""

from __future__ import annotations

from collections.abc import Mapping

from semipd_engine.contract import Split

LADDER = (10, 20, 30, 40, 50, 60, 80, 100)
"""Percent. Few, for each rung in use is a process with a context; fine where it matters (a small share)."""
WHOLE = 100
GRANULE = 8
"""SMs: the coarsest unit in which NVIDIA documents SMs to be handed out (Hopper and later)."""
SMALLEST = 2
"""SMs: a limit below one pair of SMs gives one pair."""


def nearest(percent: int) -> int:
    """The nearest rung; of two that are equally near the larger, because a ceiling too high harms less."""
    return min(LADDER, key=lambda rung: (abs(rung - percent), -rung))


def quantize(want: Split) -> Split:
    return Split(prefill=nearest(want.prefill), decode=nearest(want.decode))


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
