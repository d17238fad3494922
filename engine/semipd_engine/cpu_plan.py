"""What a split means on the CPU: cores of its own for each phase, or layer quanta in proportion. Pure, torch-free.

Limits bind only while both phases are busy; a phase that is alone has every granted CPU. Prefill's part is x / (x + y)
where the shares exceed the device together, else x / 100; decode's likewise. Where whole cores come within `TOLERANCE`
of both parts, each phase is pinned to cores of its own: cores disturb each other far less than quanta do. Otherwise
(80/20 on two CPUs) both keep all CPUs and take turns in the ratio x : y, with the rest of a hundred left idle.
"""

from __future__ import annotations

from collections.abc import Sequence

from semipd_engine.contract import Enforcement, PacingMode, PartitionPlan, PhaseLimit, Split

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


def _whole_cores(split: Split, n: int) -> tuple[int, int] | None:
    """Cores of prefill and decode nearest to their parts; None where the nearest are too far off."""
    want_prefill, want_decode = (part * n for part in parts(split))

    def distance(cores: tuple[int, int]) -> float:
        prefill, decode = cores
        return max(abs(prefill - want_prefill) / want_prefill, abs(decode - want_decode) / want_decode)

    best = min(((p, d) for p in range(1, n) for d in range(1, n - p + 1)), key=distance, default=None)
    return best if best is not None and distance(best) <= TOLERANCE else None
