"""Which rungs have a worker already, how long another one's takes to be ready, and which could not be made ready. Pure;
it puts no price on that.

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
UNREADY_SECONDS = 600.0
"""So long no policy chooses rungs that were refused: what they lacked (memory, mostly) seldom comes back sooner, and
each try starts a worker beside those that serve."""


@dataclass(frozen=True)
class Unready:
    """Rungs that could not be prepared; None: that phase's had its worker."""

    prefill: int | None
    decode: int | None

    def part_of(self, split: Split) -> bool:
        return self.prefill in (None, split.prefill) and self.decode in (None, split.decode)


@dataclass(frozen=True)
class Preparation:
    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    """Percents of the rungs that have a ready worker."""
    seconds: float = ASSUMED_SECONDS
    """From asking for a worker until it is ready."""
    unready: tuple[Unready, ...] = ()
    """What was refused of late: no policy chooses it."""

    @classmethod
    def told(cls, workers: Iterable[WorkerReport], unready: tuple[Unready, ...] = ()) -> Preparation:
        """Each phase's youngest worker is the best witness: the first ones' starts hold imports that others inherit.
        Both phases may need one, at the same time, so the slower one counts."""
        ready = [w for w in workers if w.state is WorkerState.READY and not w.ending]
        warm = {phase: tuple(sorted({w.percent for w in ready if w.phase is phase})) for phase in Phase}
        oldest_first = sorted(ready, key=lambda w: w.generation)
        took = {w.phase: sum(w.start_seconds.values()) for w in oldest_first if w.start_seconds}
        return cls(warm[Phase.PREFILL], warm[Phase.DECODE], max(took.values(), default=ASSUMED_SECONDS), unready)

    def takes(self, split: Split) -> float:
        """Seconds until it would be in force."""
        return 0.0 if split.prefill in self.prefill and split.decode in self.decode else self.seconds

    def may(self, split: Split) -> bool:
        """Is it worth a try?"""
        return not any(rungs.part_of(split) for rungs in self.unready)

    def cold(self, split: Split) -> Unready:
        """Those of its rungs that have no worker: what a refusal of it speaks of. Where both have one, of the two."""
        prefill = None if split.prefill in self.prefill else split.prefill
        decode = None if split.decode in self.decode else split.decode
        return Unready(prefill, decode) if prefill or decode else Unready(split.prefill, split.decode)


class Refusals:
    """What could not be prepared of late. The caller brings the time (seconds)."""

    def __init__(self) -> None:
        self._until: dict[Unready, float] = {}

    def note(self, rungs: Unready, now: float) -> None:
        self._until[rungs] = now + UNREADY_SECONDS

    def disproved(self, split: Split) -> None:
        """It is in force after all."""
        self._until = {rungs: end for rungs, end in self._until.items() if not rungs.part_of(split)}

    def of_late(self, now: float) -> tuple[Unready, ...]:
        return tuple(rungs for rungs, end in self._until.items() if now < end)
