"""Backend of the CPU: each phase gets cores of its own or alternates layer quanta. The engine executes the limits.

It knows the granted CPUs and the split; how a share becomes cores or quanta is `semipd_engine.cpu_plan`.
"""

from __future__ import annotations

from semipd_agent.contract import Enforcement, PartitionReason
from semipd_agent.partitioner.base import PartitionerUnavailable, Passive
from semipd_engine.contract import PartitionPlan, Split
from semipd_engine.cpu_grant import Grant
from semipd_engine.cpu_plan import cpu_plan


class CpuPaced(Passive):
    """A worker reads its limit and its epoch from the same page, so the epoch proves the limit."""

    name = "cpu-paced"
    enforcement = Enforcement.PACED
    mixes = True

    def __init__(self, grant: Grant, threads: int = 0) -> None:
        """`threads`: of a phase that is alone; 0: one for each granted CPU."""
        self._grant, self._threads = grant, threads

    def preflight(self) -> None:
        if not self._grant.cpus:
            raise PartitionerUnavailable(PartitionReason.NO_CPUS, "the affinity mask grants no CPU")

    def quantize(self, want: Split) -> Split:
        """Every percent can be paced, so nothing is rounded."""
        return want

    def plan(self, split: Split) -> PartitionPlan:
        return cpu_plan(split, self._grant.cpus, self._threads)
