"""Backend ``none``: both phases may use the whole device at any time. Shares are shown, and limit nothing."""

from __future__ import annotations

from semipd_agent.contract import Enforcement
from semipd_agent.partitioner.base import Grant
from semipd_engine import contract as engine
from semipd_engine.contract import PacingMode, PartitionPlan, PhaseLimit, Split, WorkerReport

WHOLE = Split(prefill=100, decode=100)


class Unlimited:
    name = "none"
    enforcement = Enforcement.NONE

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    def preflight(self) -> None:
        return None

    def quantize(self, want: Split) -> Split:
        return WHOLE

    def plan(self, split: Split) -> PartitionPlan:
        limit = PhaseLimit(percent=100, threads=self._grant.threads)
        return PartitionPlan(
            split=split,
            enforcement=engine.Enforcement.NONE,
            mode=PacingMode.UNLIMITED,
            granted_cpus=self._grant.cpus,
            threads=self._grant.threads,
            prefill=limit,
            decode=limit,
        )

    def verify(self, worker: WorkerReport, split: Split) -> str | None:
        return None

    def health(self) -> str | None:
        return None

    def close(self) -> None:
        return None
