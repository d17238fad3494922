"""Partitions in rungs, as the agent's MPS backend makes them, for workers on the CPU: there the limit is a no-op."""

from __future__ import annotations

from semipd_engine.contract import Enforcement, PacingMode, PartitionPlan, PhaseLimit, Split

DEVICE_SMS = 132


def sms(percent: int) -> int:
    return 2 * (DEVICE_SMS * percent // 200)


def limit(percent: int, daemon: int = 1, sees: int | None = None, start: str = "") -> PhaseLimit:
    """One rung under MPS daemon number `daemon`. `sees`: SMs that its worker sees; `start`: what it does first."""
    environment = {
        "CUDA_MPS_PIPE_DIRECTORY": f"/run/spd/{daemon}/p",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent),
        "SEMIPD_FAKE_SMS": str(sms(percent) if sees is None else sees),
    }
    environment |= {"SEMIPD_FAKE_START": start} if start else {}
    return PhaseLimit(percent=percent, environment=environment, sm_count=sms(percent))


def plan_of(prefill: PhaseLimit, decode: PhaseLimit, daemon: int = 1) -> PartitionPlan:
    return PartitionPlan(
        split=Split(prefill=prefill.percent, decode=decode.percent),
        enforcement=Enforcement.SPATIAL_CAP,
        mode=PacingMode.RUNGS,
        prefill=prefill,
        decode=decode,
        whole=limit(100, daemon),
    )


def plan(prefill: int, decode: int, daemon: int = 1) -> PartitionPlan:
    return plan_of(limit(prefill, daemon), limit(decode, daemon), daemon)
