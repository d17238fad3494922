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

from semipd_engine.contract import Enforcement, PacingMode, PartitionPlan, Phase, PhaseLimit, Split

TOLERANCE = 0.25
"""Greatest relative distance of whole cores from a phase's part."""


def parts(split: Split) -> tuple[float, float]:
    """Prefill's and decode's part (0–1) of the CPU time while both are busy."""
    whole = max(100, split.prefill + split.decode)
    return split.prefill / whole, split.decode / whole


def cpu_plan(split: Split, cpus: Sequence[int], threads: int = 0) -> PartitionPlan:
    """Limits for `split` on the granted CPU numbers.

    `threads`: threads of a phase that is alone; 0: one for each granted CPU. Raises ValueError without a CPU.
    """
    if not cpus:
        raise ValueError("no CPU granted")
    granted = tuple(sorted(cpus))
    alone = threads or len(granted)
    if (cores := _whole_cores(split, len(granted))) is not None:
        prefill, decode = cores
        return PartitionPlan(
            split=split,
            enforcement=Enforcement.PACED,
            mode=PacingMode.CORES,
            granted_cpus=granted,
            threads=alone,
            prefill=PhaseLimit(percent=split.prefill, cpus=granted[:prefill], threads=prefill),
            decode=PhaseLimit(percent=split.decode, cpus=granted[-decode:], threads=decode),
        )
    if (shared := _shared_cpus(split, len(granted))) is not None:
        return _turns(split, granted, alone, shared)
    return PartitionPlan(
        split=split,
        enforcement=Enforcement.PACED,
        mode=PacingMode.QUANTA,
        granted_cpus=granted,
        threads=alone,
        prefill=PhaseLimit(percent=split.prefill, threads=alone, weight=split.prefill),
        decode=PhaseLimit(percent=split.decode, threads=alone, weight=split.decode),
        idle_weight=max(0, 100 - split.prefill - split.decode),
    )


def _shared_cpus(split: Split, n: int) -> int | None:
    """CPUs for which the phases take turns: as few as hold the smaller part. None: the other would have none left."""
    shared = math.ceil(min(parts(split)) * n)
    return shared if shared < n and split.prefill + split.decode >= 100 else None


def _turns(split: Split, granted: tuple[int, ...], alone: int, shared: int) -> PartitionPlan:
    smaller, larger = (Phase.DECODE, Phase.PREFILL) if split.decode <= split.prefill else (Phase.PREFILL, Phase.DECODE)
    own = len(granted) - shared
    weight = min(99, max(1, round(100 * min(parts(split)) * len(granted) / shared)))
    limits = {
        smaller: PhaseLimit(percent=split.of(smaller), cpus=granted[own:], threads=min(shared, alone), weight=weight),
        larger: PhaseLimit(percent=split.of(larger), cpus=granted[:own], threads=min(own, alone), weight=100 - weight),
    }
    return PartitionPlan(
        split=split,
        enforcement=Enforcement.PACED,
        mode=PacingMode.TURNS,
        granted_cpus=granted,
        threads=alone,
        prefill=limits[Phase.PREFILL],
        decode=limits[Phase.DECODE],
        waiting=smaller,
    )


def _whole_cores(split: Split, n: int) -> tuple[int, int] | None:
    """Cores of prefill and decode nearest to their parts; None where the nearest are too far off."""
    want_prefill, want_decode = (part * n for part in parts(split))

    def distance(cores: tuple[int, int]) -> float:
        prefill, decode = cores
        return max(abs(prefill - want_prefill) / want_prefill, abs(decode - want_decode) / want_decode)

    best = min(((p, d) for p in range(1, n) for d in range(1, n - p + 1)), key=distance, default=None)
    return best if best is not None and distance(best) <= TOLERANCE else None
