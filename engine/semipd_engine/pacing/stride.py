"""Stride arithmetic: who is next, when both phases want the CPUs. Pure; times are CPU nanoseconds.

Each customer has a virtual time that grows by the CPU time it held divided by its weight; the one that is furthest
behind is next, and keeps its turn for some quanta. Controlling the ratio and not the amount is what the host's other
load cannot disturb, and lets a turn be longer or shorter than another. Where the shares leave a rest (x + y < 100), a
third customer called nobody owns it, and sleeps when its turn comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

SCALE = 100
TURN_NS = 8_000_000
"""Wall time of a turn of the lightest customer on all CPUs; the others' are longer. Each change of hands costs: CPUs
wait for the end of the other's quantum, threads move, caches are filled anew (`make bench-split`)."""
CREDIT_NS = 20_000_000
"""Wall time of the lightest customer on all CPUs that anybody may lag behind; more is forgotten, so that nobody can
hoard turns. It must be more than the longest turn and a quantum: that far one turn of the lightest puts the others
behind."""
MOST_HALVES = 4
"""A turn that waits for the end of a step ends so many halves ahead at most: less than the credit, beyond which nobody
is seen to lag behind."""


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
    """Virtual time no further behind `others` than the credit; `lightest` is the smaller phase's weight."""
    return max(vtime, others - CREDIT_NS * cpus * SCALE // lightest)


def whose_turn(vtimes: Mapping[Customer, int], holder: Customer, lead: int) -> Customer:
    """The customer that is furthest behind; but the one that had the last turn keeps it until it is by `lead` ahead."""
    furthest = min(vtimes, key=lambda customer: (vtimes[customer], customer))
    return holder if holder in vtimes and vtimes[holder] < vtimes[furthest] + lead else furthest


def half_turn(lightest: int, cpus: int) -> int:
    """In virtual time. A turn that begins so far behind ends so far ahead. `lightest` is the smaller phase's weight,
    `cpus` how many CPUs are granted."""
    return TURN_NS // 2 * cpus * SCALE // lightest


def end_of_turn(ahead: int, rest: int, step: int, half: int) -> int:
    """How far ahead a turn of steps is to end, so that it ends with one of them: with the one whose end lies nearest to
    half a turn. A step that begins just before the end of a turn waits for two of the other phase, and so does who
    reads its token. One that is longer than three halves is cut into equal turns.

    All in virtual time: how far `ahead` the phase is now, the `rest` of the step in hand, what a `step` costs."""
    if is_cut(rest, half):
        return ahead + rest // round(rest / (2 * half))
    return ahead + rest + step * max(0, round((half - ahead - rest) / step))


def is_cut(rest: int, half: int) -> bool:
    """Is so much of a step too long for one turn?"""
    return rest > 3 * half


def ends_now(ahead: int, step: int, half: int) -> bool:
    """Between two steps: does no later end lie nearer to half a turn?"""
    return ahead > 0 and half - ahead < end_of_turn(ahead, step, step, half) - half
