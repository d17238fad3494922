"""Which rungs have a worker already, and how long another one's takes to be ready. Pure; it puts no price on that.

Both are in what workers say of themselves. Only where each rung is a worker of its own (`mps`) does a move wait for
one: elsewhere a live worker's limit changes, every split is in force at once, and there is no `Preparation`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from semipd_engine.contract import Phase, Split, WorkerReport, WorkerState

ASSUMED_SECONDS = 10.0
"""Where no worker tells what its start took: a process with torch, a context, kernels and their proofs. A guess, as
long as no GPU has been measured."""


@dataclass(frozen=True)
class Preparation:
    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    """Percents of the rungs that have a ready worker."""
    seconds: float = ASSUMED_SECONDS
    """From asking for a worker until it is ready."""

    @classmethod
    def told(cls, workers: Iterable[WorkerReport]) -> Preparation:
        """Each phase's youngest worker is the best witness: the first ones' starts hold imports that others inherit.
        Both phases may need one, at the same time, so the slower one counts."""
        ready = [w for w in workers if w.state is WorkerState.READY and not w.ending]
        warm = {phase: tuple(sorted({w.percent for w in ready if w.phase is phase})) for phase in Phase}
        oldest_first = sorted(ready, key=lambda w: w.generation)
        took = {w.phase: sum(w.start_seconds.values()) for w in oldest_first if w.start_seconds}
        return cls(warm[Phase.PREFILL], warm[Phase.DECODE], max(took.values(), default=ASSUMED_SECONDS))

    def takes(self, split: Split) -> float:
        """Seconds until it would be in force."""
        return 0.0 if split.prefill in self.prefill and split.decode in self.decode else self.seconds
