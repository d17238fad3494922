"""Stride arithmetic: who is next, when both phases want the CPUs. Pure; times are CPU nanoseconds.

Each customer has a virtual time that grows by the CPU time it held divided by its weight; the one that is furthest
behind is next. Controlling the ratio and not the amount is what the host's other load cannot disturb. Where the shares
leave a rest (x + y < 100), a third customer called nobody owns it, and sleeps when its turn comes.
"""

from __future__ import annotations

from enum import Enum

SCALE = 100
CREDIT_NS = 20_000_000
"""Wall time of the lightest customer on all CPUs that anybody may lag behind; more is forgotten, so that nobody can
hoard turns. It must be more than a quantum takes: one turn of the lightest puts the others that far behind."""


class Turn(Enum):
    OWN = "own"
    PEER = "peer"
    NOBODY = "nobody"


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


def whose_turn(own: int, peer: int, nobody: int | None, own_wins_ties: bool) -> Turn:
    """`nobody` is None where the shares leave no rest."""
    if nobody is not None and nobody < min(own, peer):
        return Turn.NOBODY
    return Turn.OWN if own < peer or (own == peer and own_wins_ties) else Turn.PEER
