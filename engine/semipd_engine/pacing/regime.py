"""What a phase's threads may use of the machine under a plan. Pure: moves nothing.

Threads that are as many as their CPUs keep one each. Left to roam, a woken one ran beside its sibling for 20 to 100 ms
now and then, the other CPU idle or at somebody else's work; and a step waits for the slower of both wherever they are,
so that roaming gains nothing beside a program that takes a CPU either (docs/design/0006-turns.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass

from semipd_engine.contract import PacingMode, PartitionPlan, Phase

BINDING = (PacingMode.CORES, PacingMode.QUANTA, PacingMode.TURNS)


@dataclass(frozen=True)
class Regime:
    """What a phase's threads may use, for one quantum at least."""

    cpus: tuple[int, ...]
    threads: int
    spread: bool = False
    """Each thread on a CPU of its own."""


def unlimited(plan: PartitionPlan) -> Regime:
    """Of a process whose limit is its own, or that computes elsewhere."""
    return Regime(plan.granted_cpus, plan.threads)


def regime_of(plan: PartitionPlan, phase: Phase, *, contended: bool, in_turn: bool, had: Regime | None) -> Regime:
    """`contended`: both phases are busy. `in_turn`: this one has a turn on the other's CPUs as well as its own. `had`:
    what it used before; fewer threads than CPUs roam, but those that come from fewer CPUs have one each for a quantum,
    for they would all be woken where they ran last."""
    limit, granted = plan.limit(phase), plan.granted_cpus
    if plan.mode is PacingMode.RUNGS:
        return unlimited(plan)
    if plan.mode not in BINDING:
        return _on(granted, plan.threads)
    if not contended:
        came_from_fewer = len(had.cpus if had is not None else ()) < len(granted)
        return _on(_own_first(limit.cpus, granted), plan.threads, spread=came_from_fewer)
    if plan.mode is PacingMode.QUANTA:
        return _on(granted, limit.threads)
    if in_turn:
        return _on(_own_first(limit.cpus, granted), plan.threads, spread=True)
    return _on(limit.cpus, limit.threads)


def _on(cpus: tuple[int, ...], threads: int, spread: bool = False) -> Regime:
    return Regime(cpus, threads, spread=spread or 1 < len(cpus) <= threads)


def _own_first(own: tuple[int, ...], granted: tuple[int, ...]) -> tuple[int, ...]:
    """The main thread stays where it is while the phase's CPUs are more, or fewer."""
    return own + tuple(cpu for cpu in granted if cpu not in own)
