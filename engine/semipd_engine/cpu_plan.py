"""What a split means on the CPU: cores of its own for each phase, or layer quanta in proportion. Pure, torch-free.

Limits bind only while both phases are busy; a phase that is alone has every granted CPU. Prefill's part is x / (x + y)
where the shares exceed the device together, else x / 100; decode's likewise. Where whole cores come within `TOLERANCE`
of both parts, each phase is pinned to cores of its own: cores disturb each other far less than quanta do. Otherwise
(80/20 on two CPUs) the phase with the larger part keeps whole CPUs of its own and takes turns with the other one for
the rest: so the larger never waits, and the smaller runs on few threads, which is where threads pay. Where that cannot
be (one CPU, or shares that leave a part of the device idle), both keep all CPUs and take turns in the ratio x : y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from semipd_engine.contract import Enforcement, PacingMode, PartitionPlan, Phase, PhaseLimit, Split

TOLERANCE = 0.25
"""Greatest relative distance of whole cores from a phase's part."""


def parts(split: Split) -> tuple[float, float]:
    """Prefill's and decode's part (0–1) of the CPU time while both are busy."""
    whole = max(100, split.prefill + split.decode)
    return split.prefill / whole, split.decode / whole


@lru_cache(maxsize=256)
def held(split: Split, cpus: int) -> tuple[float, float]:
    """Prefill's and decode's part (0–1) of so many CPUs as they are dealt out: cores where each has its own."""
    mode, counts, _ = _arrangement(split, cpus)
    return (counts[0] / cpus, counts[1] / cpus) if mode is PacingMode.CORES else parts(split)


def cpu_plan(split: Split, cpus: Sequence[int], threads: int = 0) -> PartitionPlan:
    """Limits for `split` on the granted CPU numbers.

    `threads`: threads of a phase that is alone; 0: one for each granted CPU. Raises ValueError without a CPU.
    """
    if not cpus:
        raise ValueError("no CPU granted")
    granted = tuple(sorted(cpus))
    alone = threads or len(granted)
    mode, counts, waiting = _arrangement(split, len(granted))

    def limit(phase: Phase, own: tuple[int, ...]) -> PhaseLimit:
        count = min(alone, len(own) or len(granted))
        return PhaseLimit(percent=split.of(phase), cpus=own, threads=count, weight=split.of(phase))

    return PartitionPlan(
        split=split,
        enforcement=Enforcement.PACED,
        mode=mode,
        granted_cpus=granted,
        threads=alone,
        prefill=limit(Phase.PREFILL, granted[: counts[0]]),
        decode=limit(Phase.DECODE, granted[len(granted) - counts[1] :]),
        waiting=waiting,
        idle_weight=max(0, 100 - split.prefill - split.decode) if mode is PacingMode.QUANTA else 0,
        aggregated=split.mixed_tokens > 0,
    )


def _arrangement(split: Split, n: int) -> tuple[PacingMode, tuple[int, int], Phase | None]:
    """How the phases share n CPUs, how many CPUs prefill and decode each have, and which of them waits for its turn."""
    if (cores := _whole_cores(split, n)) is not None:
        return PacingMode.CORES, cores, None
    shared = math.ceil(min(parts(split)) * n)  # as few as hold the smaller part
    if shared == n or split.prefill + split.decode < 100:
        return PacingMode.QUANTA, (0, 0), None
    if split.decode <= split.prefill:
        return PacingMode.TURNS, (n - shared, shared), Phase.DECODE
    return PacingMode.TURNS, (shared, n - shared), Phase.PREFILL


def _whole_cores(split: Split, n: int) -> tuple[int, int] | None:
    """Cores of prefill and decode nearest to their parts; None where the nearest are too far off."""
    want_prefill, want_decode = (part * n for part in parts(split))

    def distance(cores: tuple[int, int]) -> float:
        prefill, decode = cores
        return max(abs(prefill - want_prefill) / want_prefill, abs(decode - want_decode) / want_decode)

    best = min(((p, d) for p in range(1, n) for d in range(1, n - p + 1)), key=distance, default=None)
    return best if best is not None and distance(best) <= TOLERANCE else None
