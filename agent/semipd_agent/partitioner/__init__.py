"""What makes a split real on one kind of device. Decides no split, talks to no engine.

`select` picks the backend for a device: ``cpu-paced``, ``mps`` or, where it is asked for and can be, ``mps-green``
(NVIDIA GPUs), or ``none`` where nothing is to be split. A GPU without MPS is served only with ``partition.mode:
Disabled``, and the report says why (`mps.preflight`).
"""

from __future__ import annotations

from semipd_agent.contract import Mode
from semipd_agent.partitioner.base import Partitioner, PartitionerUnavailable, Problem
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.mps.backend import Mps
from semipd_agent.partitioner.mps.programs import OUTSIDE_MPS
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_engine.contract import Device
from semipd_engine.cpu_grant import Grant

__all__ = ["Grant", "Mps", "Partitioner", "PartitionerUnavailable", "Problem", "select"]


def select(
    device: Device, mode: Mode, grant: Grant, *, unified: bool = False, threads: int = 0, mps: Mps | None = None
) -> Partitioner:
    """The backend for a resolved device.

    `unified`: both phases run in one process, so there is nothing to split. `threads`: of a phase that is alone on a
    CPU; 0: one for each granted CPU. `mps`: the one of this GPU, for a daemon
    outlives a change of the mode.

    Raises:
        ValueError: `device` is still ``auto``, or a GPU comes without its `mps`.
    """
    if device is Device.AUTO:
        raise ValueError("resolve device=auto before a partitioner is selected")
    if device is Device.CPU:
        whole = mode is Mode.DISABLED or unified
        return Unlimited(grant, threads=threads) if whole else CpuPaced(grant, threads)
    if mode is Mode.DISABLED or unified:
        return Unlimited(Grant(), OUTSIDE_MPS if not unified else None)
    if mps is None:
        raise ValueError("device cuda needs its Mps")
    return mps
