"""May MPS be started here? Gathers the facts, and judges them: pure policies in order, the first refusal counts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semipd_agent.contract import PartitionReason
from semipd_agent.gpu.telemetry import ComputeMode, GpuFacts, Telemetry, TelemetryLost
from semipd_agent.partitioner.base import PartitionerUnavailable
from semipd_agent.partitioner.mps.programs import PIPE_DIRECTORY, Programs

LONGEST_SOCKET = 90
"""Bytes of the daemon's socket path. The kernel ends at 107, where the daemon fails without a word."""
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "ceph", "lustre", "fuse", "9p", "gpfs", "beegfs")
_PRIVATE = "mps-xxxxxxxx/999"
"""The form of an incarnation's folder below the base directory."""


@dataclass(frozen=True)
class Host:
    """What the policies look at."""

    gpu: GpuFacts | None
    """None: NVML shows no GPU."""
    device_files: bool
    """Are there NVIDIA device files? Then a GPU may be here although NVML is not (no `utility` capability)."""
    missing_programs: tuple[str, ...]
    uids: tuple[int, int, int]
    """Real, effective and saved."""
    base: Path
    base_problem: str
    """Why the base directory cannot hold the daemon's directories; empty: it can."""
    file_system: str
    inherited_pipe: str
    """CUDA_MPS_PIPE_DIRECTORY as somebody else set it for us, if a daemon listens there; empty otherwise."""


def look(programs: Programs, telemetry: Telemetry | None, base: Path) -> Host:
    """The facts of this machine. Starts nothing."""
    gpu = None
    if telemetry is not None:
        try:
            gpu = telemetry.facts()
        except TelemetryLost:
            gpu = None
    return Host(
        gpu=gpu,
        device_files=Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists(),
        missing_programs=tuple(programs.missing),
        uids=os.getresuid(),
        base=base,
        base_problem=_base_problem(base),
        file_system=_file_system(base),
        inherited_pipe=_inherited_pipe(),
    )


def _inherited_pipe() -> str:
    """A directory without a control socket is nobody's: a variable alone may only keep its processes out of MPS."""
    pipe = os.environ.get(PIPE_DIRECTORY, "")
    try:
        return pipe if pipe and (Path(pipe) / "control").exists() else ""
    except OSError:  # somebody else's, and not for us to see
        return pipe


@dataclass(frozen=True)
class Refusal:
    found: str
    remedy: str


def judge(host: Host) -> None:
    """Raises `PartitionerUnavailable` with the first policy's refusal and its remedy."""
    for reason, policy in POLICIES:
        if refused := policy(host):
            raise PartitionerUnavailable(reason, f"{refused.found}: {refused.remedy}")


def _no_gpu(host: Host) -> Refusal | None:
    if host.gpu is not None or host.device_files:
        return None
    return Refusal(
        "device cuda, and no NVIDIA GPU is visible here",
        "give the container one (nvidia.com/gpu, or --gpus all), or set spec.engine.device: cpu",
    )


def _programs(host: Host) -> Refusal | None:
    if not host.missing_programs:
        return None
    return Refusal(
        f"{' and '.join(host.missing_programs)} not found",
        "the NVIDIA container toolkit mounts them under NVIDIA_DRIVER_CAPABILITIES=compute,utility; "
        "or set spec.partition.mode: Disabled to serve without a split",
    )


def _user(host: Host) -> Refusal | None:
    if len(set(host.uids)) == 1:
        return None
    return Refusal(
        f"real, effective and saved user ids differ ({', '.join(map(str, host.uids))})",
        "MPS serves the clients of one user only: start the agent as that user, not by a set-uid program",
    )


def _mig(host: Host) -> Refusal | None:
    if host.gpu is None or not host.gpu.mig:
        return None
    return Refusal(
        f"{host.gpu.name} is in MIG mode",
        "give the pod a whole GPU without MIG, or set spec.partition.mode: Disabled",
    )


def _compute_mode(host: Host) -> Refusal | None:
    if host.gpu is None or host.gpu.compute_mode is ComputeMode.DEFAULT:
        return None
    return Refusal(
        f"compute mode {host.gpu.compute_mode}, and the process that holds the weights is no MPS client",
        "an administrator sets the mode with nvidia-smi -c DEFAULT",
    )


def _foreign(host: Host) -> Refusal | None:
    if host.inherited_pipe:
        return Refusal(
            f"{PIPE_DIRECTORY}={host.inherited_pipe} was set for us, so another MPS daemon is in charge of the GPU",
            "use a node whose device plugin shares by strategy none",
        )
    if host.gpu is not None and host.gpu.mps_clients:
        pids = ", ".join(map(str, host.gpu.mps_clients))
        return Refusal(f"the GPU has MPS clients of another daemon (PID {pids})", "give this pod a GPU of its own")
    return None


def _directory(host: Host) -> Refusal | None:
    if host.base_problem:
        return Refusal(f"{host.base} is {host.base_problem}", "name a writable directory with --mps-dir")
    longest = len(os.fsencode(host.base / _PRIVATE / "p" / "control"))
    if longest > LONGEST_SOCKET:
        found = f"{host.base} is too long for the daemon's socket ({longest} of {LONGEST_SOCKET} bytes)"
        return Refusal(found, "name a shorter directory with --mps-dir")
    if host.file_system.startswith(_NETWORK_FILE_SYSTEMS):
        return Refusal(
            f"{host.base} is on {host.file_system}", "MPS needs a local file system: name one with --mps-dir"
        )
    return None


POLICIES: tuple[tuple[PartitionReason, Callable[[Host], Refusal | None]], ...] = (
    (PartitionReason.NO_GPU, _no_gpu),
    (PartitionReason.MPS_UNAVAILABLE, _programs),
    (PartitionReason.USER_MISMATCH, _user),
    (PartitionReason.MIG_ENABLED, _mig),
    (PartitionReason.COMPUTE_MODE_UNSUPPORTED, _compute_mode),
    (PartitionReason.FOREIGN_MPS, _foreign),
    (PartitionReason.MPS_DIRECTORY_UNUSABLE, _directory),
)
"""In this order: what lies deeper first."""


def default_base() -> Path:
    """``/run/spd`` where the pod has it, else the temporary directory."""
    pod = Path("/run/spd")
    return pod if os.access(pod, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _base_problem(base: Path) -> str:
    if not base.is_dir():
        return "no directory"
    return "" if os.access(base, os.W_OK | os.X_OK) else "not writable"


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`; empty where the kernel does not say."""
    best, kind = -1, ""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4].replace("\\040", " "))
        if len(mount.parts) > best and path.absolute().is_relative_to(mount):
            best, kind = len(mount.parts), after.split()[0]
    return kind
