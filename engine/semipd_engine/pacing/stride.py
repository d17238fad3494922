"""Stride arithmetic: who is next, when both phases want the CPUs. Pure; times are CPU nanoseconds.

Each customer has a virtual time that grows by the CPU time it held divided by its weight; the one that is furthest
behind is next, and keeps its turn for some quanta. Controlling the ratio and not the amount is what the host's other
load cannot disturb. Where the shares leave a rest (x + y < 100), a third customer called nobody owns it, and sleeps
when its turn comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum

SCALE = 100
TURN_NS = 8_000_000
"""Wall time of a turn of the lightest customer on all CPUs; the others' are longer. Each change of hands costs: CPUs
wait for the end of the other's quantum, threads move, caches are filled anew (`make bench-split`)."""
CREDIT_NS = 20_000_000
"""Wall time of the lightest customer on all CPUs that anybody may lag behind; more is forgotten, so that nobody can
hoard turns. It must be more than a turn and a quantum: that far one turn of the lightest puts the others behind."""


class Customer(IntEnum):
    """Who wants CPU time; in this order they win a tie."""

    DECODE = 0
    PREFILL = 1
    NOBODY = 2


def charged(vtime: int, cpu_ns: int, weight: int) -> int:
    """Virtual time after holding `cpu_ns`."""
    return vtime + cpu_ns * SCALE // weight


def levelled(own: int, peer: int) -> int:
    """Virtual time of a phase that was asleep or alone: it starts level, with neither credit nor debt towards a peer
    that was asleep as well."""
    return max(own, peer)


def clamped(vtime: int, others: int, lightest: int, cpus: int) -> int:
    """Virtual time no further behind `others` than the credit; `lightest` is the smallest weight in the game."""
    return max(vtime, others - CREDIT_NS * cpus * SCALE // lightest)


def turn_left(own: int, furthest: int, pace: float, rival_pace: float, lightest: int, cpus: int) -> float:
    """Nanoseconds until whoever has the turn is half a turn ahead of the one that is furthest behind. Paces: by how
    much virtual time grows in a nanosecond, the rival's too, which may run beside."""
    gain = pace - rival_pace
    return (furthest + _lead(lightest, cpus) - own) / gain if gain > 0 else math.inf


def whose_turn(vtimes: Mapping[Customer, int], holder: Customer, lightest: int, cpus: int) -> Customer:
    """The customer that is furthest behind; but the one that had the last turn keeps it until it is half a turn ahead.

    So it began half a turn behind. `lightest` is the smallest weight, `cpus` how many CPUs are granted."""
    furthest = min(vtimes, key=lambda customer: (vtimes[customer], customer))
    return holder if holder in vtimes and vtimes[holder] < vtimes[furthest] + _lead(lightest, cpus) else furthest


def _lead(lightest: int, cpus: int) -> int:
    """Half a turn, in virtual time."""
    return TURN_NS // 2 * cpus * SCALE // lightest
