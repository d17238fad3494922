"""Backend ``none``: both phases may use the whole device at any time. Shares are shown, and limit nothing."""

from __future__ import annotations

from collections.abc import Mapping

from semipd_agent.contract import Enforcement
from semipd_agent.partitioner.base import Passive
from semipd_engine import contract as engine
from semipd_engine.contract import PacingMode, PartitionPlan, PhaseLimit, Split
from semipd_engine.cpu_grant import Grant

WHOLE = Split(prefill=100, decode=100)


class Unlimited(Passive):
    name = "none"
    enforcement = Enforcement.NONE

    def __init__(self, grant: Grant, environment: Mapping[str, str] | None = None, threads: int = 0) -> None:
        """`environment`: of the workers on a device whose limits are fixed at their start (CUDA); None elsewhere.

        There it is one rung for both phases, so that partitioning is switched off and on without a new engine.
        """
        self._grant = grant
        self._threads = threads or grant.threads
        self._environment = environment

    def quantize(self, want: Split) -> Split:
        return WHOLE

    def plan(self, split: Split) -> PartitionPlan:
        rungs = self._environment is not None
        limit = PhaseLimit(percent=100, threads=self._threads, environment=dict(self._environment or {}))
        return PartitionPlan(
            split=split,
            enforcement=engine.Enforcement.NONE,
            mode=PacingMode.RUNGS if rungs else PacingMode.UNLIMITED,
            granted_cpus=self._grant.cpus,
            threads=self._threads,
            prefill=limit,
            decode=limit,
            whole=limit if rungs else None,
        )
