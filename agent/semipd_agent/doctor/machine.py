"""What the doctor looks at, as this machine shows it. Judges nothing."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from semipd_agent.gpu.telemetry import NvmlTelemetry, open_telemetry
from semipd_agent.partitioner.mps import preflight
from semipd_agent.partitioner.mps.preflight import Host
from semipd_agent.partitioner.mps.programs import Programs
from semipd_engine.cpu_grant import Grant, granted


@dataclass(frozen=True)
class Machine:
    host: Host
    """GPU, MPS programs and directories, as the MPS preflight sees them."""
    grant: Grant
    cpu_flags: frozenset[str]
    """From /proc/cpuinfo; empty where it has none (not x86)."""
    shm_bytes: int
    """Size of /dev/shm; 0: there is none."""
    open_files: int
    """Soft limit of file descriptors."""
    default_daemon: bool
    """Does somebody's MPS daemon listen at /tmp/nvidia-mps?"""


def this_machine(base: Path) -> Machine:
    """`base`: the directory of MPS daemons."""
    telemetry: NvmlTelemetry | None = open_telemetry()
    return Machine(
        host=preflight.look(Programs.find(), telemetry, base),
        grant=granted(),
        cpu_flags=_cpu_flags(),
        shm_bytes=_size(Path("/dev/shm")),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        default_daemon=Path("/tmp/nvidia-mps/control").exists(),
    )


def _cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def _size(path: Path) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return found.f_blocks * found.f_frsize
