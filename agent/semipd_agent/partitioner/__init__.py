"""What makes a split real on one kind of device. Decides no split, talks to no engine.

`select` picks the backend for a device. ``mps`` (NVIDIA GPUs) is not here yet: until it is, a GPU is served only with
``partition.mode: Disabled``, and says so (`MPSUnavailable`).
"""

from __future__ import annotations

from semipd_agent.contract import Mode
from semipd_agent.partitioner.base import Grant, Partitioner, PartitionerUnavailable
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_engine.contract import Device

__all__ = ["Grant", "Partitioner", "PartitionerUnavailable", "select"]


def select(device: Device, mode: Mode, grant: Grant, *, unified: bool = False) -> Partitioner:
    """The backend for a resolved device.

    `unified`: both phases run in one process, so there is nothing to split.

    Raises:
        PartitionerUnavailable: a split is asked for on a GPU, and no MPS backend can stand behind it.
        ValueError: `device` is still ``auto``.
    """
    if device is Device.AUTO:
        raise ValueError("resolve device=auto before a partitioner is selected")
    if mode is Mode.DISABLED or unified:
        return Unlimited(grant if device is Device.CPU else Grant())
    if device is Device.CUDA:
        raise PartitionerUnavailable(
            "MPSUnavailable",
            "this GPU has no MPS backend, so no SM limit could be enforced; "
            "set spec.partition.mode: Disabled to serve without a split",
        )
    return CpuPaced(grant)
