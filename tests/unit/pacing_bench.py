"""A fake machine for the pacer: one clock, and two phases that take turns on it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from semipd_engine.contract import Phase, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.pacing.pacer import STALE_NS, PhasePacer
from semipd_engine.pacing.page import PacingPage

CPUS = (0, 1)


class WouldWait(Exception):
    """The pacer wants to sleep: on the fake machine that ends the attempt."""


class Machine:
    """A processor whose clock moves only when told."""

    def __init__(self, clock: list[int], shared: list[Machine | None]) -> None:
        self.clock, self.shared = clock, shared
        self.cpu = 0
        self.rings = 0
        self.threads = 0
        self.cpus: tuple[int, ...] = ()
        self.is_spread = False
        self.spreads, self.born = 0, 99
        self.waited = 0.0
        self.on_sleep: Callable[[float], None] = self._would_wait

    def _would_wait(self, seconds: float) -> None:
        raise WouldWait

    def monotonic_ns(self) -> int:
        return self.clock[0]

    def cpu_ns(self) -> int:
        return self.cpu

    def sleep(self, seconds: float) -> None:
        self.on_sleep(seconds)

    def heard(self) -> int:
        return 0

    def ring(self) -> None:
        self.rings += 1

    def wait(self, heard: int, seconds: float) -> None:
        self.waited = seconds
        raise WouldWait

    def set_threads(self, count: int) -> None:
        self.threads = count

    def pin(self, cpus: Sequence[int]) -> None:
        if 99 in cpus:
            raise OSError("no such CPU")
        self.cpus = tuple(cpus)
        self.is_spread = False

    def spread(self, cpus: Sequence[int]) -> int:
        self.pin(cpus)
        self.is_spread = True
        self.spreads += 1
        return self.born

    def try_lock(self) -> bool:
        if self.shared[0] not in (None, self):
            return False
        self.shared[0] = self
        return True

    def unlock(self) -> None:
        self.shared[0] = None


class Pair:
    """Both phases of an engine on one fake machine."""

    def __init__(self, split: Split, cpus: tuple[int, ...] = CPUS) -> None:
        self.clock = [10 * STALE_NS]
        holder: list[Machine | None] = [None]
        self.page = PacingPage.create()
        self.page.write_plan(1, cpu_plan(split, cpus))
        self.machines = {phase: Machine(self.clock, holder) for phase in Phase}
        peers = {Phase.PREFILL: Phase.DECODE, Phase.DECODE: Phase.PREFILL}
        self.pacers = {p: PhasePacer(self.page, p, peers[p], self.machines[p]) for p in Phase}
        for number, phase in enumerate(Phase):
            self.pacers[phase].start(pid=100 + number, generation=1)

    def pass_time(self, ns: int) -> None:
        self.clock[0] += ns

    def quantum(self, phase: Phase, ns: int, cpu_ns: int | None = None) -> bool:
        """One quantum of `ns`, on two threads unless `cpu_ns` says otherwise. False if it is not the phase's turn."""
        try:
            with self.pacers[phase].quantum():
                self.pass_time(ns)
                self.machines[phase].cpu += 2 * ns if cpu_ns is None else cpu_ns
        except WouldWait:
            return False
        return True


def saturate(pair: Pair, rng: random.Random, milliseconds: int) -> dict[Phase, int]:
    """CPU time of each phase when both always want to run quanta of 1-5 ms; each looks again 0.2 ms after a refusal.

    A phase uses as many CPUs as its threads are pinned to when its quantum begins.
    """
    before = {p: pair.machines[p].cpu for p in Phase}

    def idle(seconds: float) -> None:
        pair.pass_time(int(seconds * 1e9))

    for phase in Phase:
        pair.machines[phase].on_sleep = idle
        pair.pacers[phase].wake()
    due = {phase: pair.clock[0] + number for number, phase in enumerate(Phase)}
    running: dict[Phase, tuple[AbstractContextManager[None], int]] = {}
    end = pair.clock[0] + milliseconds * 1_000_000
    while pair.clock[0] < end:
        phase = min(due, key=lambda p: due[p])
        pair.clock[0] = max(pair.clock[0], due[phase])
        if phase in running:
            quantum, ns = running.pop(phase)
            pair.machines[phase].cpu += ns * len(pair.machines[phase].cpus)
            quantum.__exit__(None, None, None)
        quantum, ns = pair.pacers[phase].quantum(), rng.randrange(1_000_000, 5_000_000)
        try:
            quantum.__enter__()
        except WouldWait:
            due[phase] = pair.clock[0] + 200_000
        else:
            running[phase] = quantum, ns
            due[phase] = pair.clock[0] + ns
    for quantum, _ in running.values():
        quantum.__exit__(None, None, None)
    return {p: pair.machines[p].cpu - before[p] for p in Phase}
