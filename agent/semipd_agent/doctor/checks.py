"""The doctor's judgements. Pure: a machine in, one row for each check out, with the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from semipd_agent.contract import PartitionReason
from semipd_agent.doctor.machine import Machine
from semipd_agent.partitioner.mps.preflight import POLICIES
from semipd_engine.contract import Device

ENOUGH_SHM = 256 << 20
"""Bytes. Docker's default of 64 MiB is less than MPS and the clients' pinned buffers may take."""
ENOUGH_FILES = 16384
"""File descriptors, as NVIDIA recommends for MPS."""


class Grade(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Row:
    check: str
    grade: Grade
    found: str
    remedy: str = ""


def examine(machine: Machine, device: Device) -> list[Row]:
    """`device`: what is to be served on. auto: a GPU if there is one, so a machine without is no failure."""
    rows = [_cpus(machine), _vectors(machine), _bfloat16(machine)]
    if device is Device.CPU:
        return rows
    gpu = _gpu(machine, device)
    if gpu.grade is not Grade.OK and machine.host.gpu is None and not machine.host.device_files:
        return [gpu, *rows]
    return [gpu, *_mps(machine), _tenants(machine), _shm(machine), _files(machine), *rows]


def _gpu(machine: Machine, device: Device) -> Row:
    gpu = machine.host.gpu
    if gpu is not None:
        return Row("GPU and driver", Grade.OK, f"{gpu.name}, driver {gpu.driver}")
    if machine.host.device_files:
        return Row(
            "GPU and driver",
            Grade.WARN,
            "device files, but no NVML: compute mode, MIG and tenants cannot be seen",
            "set NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    grade = Grade.FAIL if device is Device.CUDA else Grade.WARN
    remedy = "give the container a GPU (nvidia.com/gpu, --gpus all), or serve with engine.device: cpu"
    return Row("GPU and driver", grade, "no NVIDIA GPU is visible", remedy)


_NAMES = {
    PartitionReason.MPS_UNAVAILABLE: ("MPS programs", "found"),
    PartitionReason.USER_MISMATCH: ("user id", "one user"),
    PartitionReason.MIG_ENABLED: ("MIG", "off"),
    PartitionReason.COMPUTE_MODE_UNSUPPORTED: ("compute mode", "Default"),
    PartitionReason.FOREIGN_MPS: ("other MPS daemon", "none in charge of this GPU"),
    PartitionReason.MPS_DIRECTORY_UNUSABLE: ("MPS directory", "usable"),
}
_SEEN_BY_NVML = (PartitionReason.MIG_ENABLED, PartitionReason.COMPUTE_MODE_UNSUPPORTED)


def _mps(machine: Machine) -> list[Row]:
    """The preflight's own policies, all of them: it would stop at the first."""
    rows = []
    for reason, policy in POLICIES:
        if reason not in _NAMES:
            continue
        name, good = _NAMES[reason]
        if refused := policy(machine.host):
            rows.append(Row(name, Grade.FAIL, f"{reason}: {refused.found}", refused.remedy))
        elif machine.host.gpu is None and reason in _SEEN_BY_NVML:
            rows.append(Row(name, Grade.WARN, "not known without NVML"))
        elif reason is PartitionReason.FOREIGN_MPS and machine.default_daemon:
            said = "a daemon of the host listens at /tmp/nvidia-mps"
            rows.append(Row(name, Grade.WARN, said, "harmless while it has no clients on this GPU; ours is private"))
        else:
            rows.append(Row(name, Grade.OK, good))
    return rows


def _tenants(machine: Machine) -> Row:
    pids = machine.host.gpu.processes if machine.host.gpu else ()
    if not pids:
        return Row("other tenants", Grade.OK, "no other process seen on the GPU (a container may hide them)")
    said = f"{len(pids)} compute processes on the GPU (PID {', '.join(map(str, pids[:8]))})"
    return Row("other tenants", Grade.WARN, said, "a split holds among our processes only: give SemiPD the whole GPU")


def _shm(machine: Machine) -> Row:
    found = f"{machine.shm_bytes >> 20} MiB"
    if machine.shm_bytes >= ENOUGH_SHM:
        return Row("/dev/shm", Grade.OK, found)
    return Row("/dev/shm", Grade.WARN, found, "mount a memory emptyDir there, or docker run --shm-size=2g")


def _files(machine: Machine) -> Row:
    if machine.open_files >= ENOUGH_FILES or machine.open_files < 0:
        return Row("open files", Grade.OK, str(machine.open_files))
    return Row("open files", Grade.WARN, str(machine.open_files), f"ulimit -n {ENOUGH_FILES}: MPS servers take many")


def _cpus(machine: Machine) -> Row:
    grant = machine.grant
    found = f"{len(grant.cpus)} CPUs granted" + (f", quota {grant.quota:g}" if grant.quota is not None else "")
    if not grant.cpus:
        return Row("CPU grant", Grade.FAIL, found, "the affinity mask is empty: widen the cpuset")
    if grant.quota is not None and grant.quota != int(grant.quota):
        return Row("CPU grant", Grade.WARN, found, "give whole CPUs: of a fraction nothing, or throttled time, is made")
    if len(grant.cpus) < 2:
        return Row("CPU grant", Grade.WARN, found, "give two CPUs: prefill and decode then have one each")
    return Row("CPU grant", Grade.OK, found)


def _vectors(machine: Machine) -> Row:
    flags = machine.cpu_flags
    if "avx512f" in flags:
        return Row("CPU vectors", Grade.OK, "AVX-512")
    if "avx2" in flags:
        return Row("CPU vectors", Grade.OK, "AVX2")
    if not flags:
        return Row("CPU vectors", Grade.WARN, "this CPU names no x86 features", "only x86-64 was measured so far")
    return Row("CPU vectors", Grade.WARN, "no AVX2", "on engine.device cpu expect a small part of the usual speed")


def _bfloat16(machine: Machine) -> Row:
    flags = machine.cpu_flags
    if "amx_bf16" in flags:
        return Row("CPU bfloat16", Grade.OK, "AMX")
    if "avx512_bf16" in flags:
        return Row("CPU bfloat16", Grade.OK, "AVX-512 BF16")
    return Row("CPU bfloat16", Grade.WARN, "not in this CPU", "on engine.device cpu use dtype float32 (auto does)")
