"""The GPU as NVML shows it, behind a small protocol. Without a driver there is no telemetry, and that is no error.

Calls may block for as long as a sick driver likes: `sampler` makes them in a thread of its own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class ComputeMode(StrEnum):
    """NVML's compute mode; 1 (exclusive thread) is gone from all current drivers."""

    DEFAULT = "Default"
    PROHIBITED = "Prohibited"
    EXCLUSIVE_PROCESS = "ExclusiveProcess"


_COMPUTE_MODES = {0: ComputeMode.DEFAULT, 2: ComputeMode.PROHIBITED, 3: ComputeMode.EXCLUSIVE_PROCESS}


@dataclass(frozen=True)
class GpuFacts:
    """What does not change while a pod runs, or should not."""

    uuid: str
    name: str
    driver: str
    compute_mode: ComputeMode
    mig: bool
    """False also where the GPU has no MIG."""
    processes: tuple[int, ...] = ()
    """PIDs of compute processes, as the driver numbers them: in a container often of another namespace, or none."""
    mps_clients: tuple[int, ...] = ()


@dataclass(frozen=True)
class GpuSample:
    memory_used: int
    """Bytes, of all processes on the GPU."""
    memory_total: int
    utilization: float | None
    """Part of the last period (0–1) in which any kernel ran; None where the driver does not say."""
    facts: GpuFacts


class Telemetry(Protocol):
    def facts(self) -> GpuFacts:
        """Raises `TelemetryLost`."""

    def sample(self) -> GpuSample:
        """Raises `TelemetryLost`."""

    def xids(self) -> list[int]:
        """Critical Xid errors since the last call, oldest first. Does not wait. Raises `TelemetryLost`."""


class TelemetryLost(Exception):
    """The driver no longer answers for this GPU."""


class GpuLost(TelemetryLost):
    """The driver says that the GPU itself is gone (it has fallen off the bus): nothing runs on it any more."""


def _lost(error: Exception) -> TelemetryLost:
    import pynvml

    return (GpuLost if isinstance(error, pynvml.NVMLError_GpuIsLost) else TelemetryLost)(str(error))


def open_telemetry() -> NvmlTelemetry | None:
    """The GPU that the engine will take: the first one that is visible. None: no driver, or no GPU."""
    import pynvml

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    with suppress(pynvml.NVMLError):
        if pynvml.nvmlDeviceGetCount() > 0:
            return NvmlTelemetry(_first_visible())
    return None


def visible_gpus() -> int:
    """GPUs that CUDA_VISIBLE_DEVICES lets through; all of NVML's without it. After `open_telemetry`."""
    import pynvml

    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return int(pynvml.nvmlDeviceGetCount()) if names is None else len([name for name in names.split(",") if name])


def _first_visible() -> Any:
    """NVML's handle of the first entry of CUDA_VISIBLE_DEVICES (an index or a UUID), else of device 0."""
    import pynvml

    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(first)
    return pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)


class NvmlTelemetry:
    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._events: Any = None

    def facts(self) -> GpuFacts:
        import pynvml

        try:
            return GpuFacts(
                uuid=_text(pynvml.nvmlDeviceGetUUID(self._handle)),
                name=_text(pynvml.nvmlDeviceGetName(self._handle)),
                driver=_text(pynvml.nvmlSystemGetDriverVersion()),
                compute_mode=_COMPUTE_MODES.get(
                    pynvml.nvmlDeviceGetComputeMode(self._handle), ComputeMode.EXCLUSIVE_PROCESS
                ),
                mig=self._mig(),
                processes=self._pids("nvmlDeviceGetComputeRunningProcesses"),
                mps_clients=self._pids("nvmlDeviceGetMPSComputeRunningProcesses"),
            )
        except pynvml.NVMLError as e:
            raise _lost(e) from e

    def sample(self) -> GpuSample:
        import pynvml

        facts = self.facts()
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        except pynvml.NVMLError as e:
            raise _lost(e) from e
        utilization = None
        with suppress(pynvml.NVMLError):
            utilization = pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        return GpuSample(int(memory.used), int(memory.total), utilization, facts)

    def xids(self) -> list[int]:
        import pynvml

        found: list[int] = []
        try:
            if self._events is None:
                self._events = self._watch_events()
            while self._events:
                found.append(int(pynvml.nvmlEventSetWait_v2(self._events, 0).eventData))
        except pynvml.NVMLError_Timeout:
            pass  # no more of them
        except pynvml.NVMLError as e:
            raise _lost(e) from e
        return found

    def _watch_events(self) -> Any:
        """An event set for critical Xids; False where this GPU has none."""
        import pynvml

        try:
            if not pynvml.nvmlDeviceGetSupportedEventTypes(self._handle) & pynvml.nvmlEventTypeXidCriticalError:
                return False
            events = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(self._handle, pynvml.nvmlEventTypeXidCriticalError, events)
            return events
        except pynvml.NVMLError_NotSupported:
            return False

    def _mig(self) -> bool:
        import pynvml

        try:
            return bool(pynvml.nvmlDeviceGetMigMode(self._handle)[0])
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
            return False

    def _pids(self, function: str) -> tuple[int, ...]:
        import pynvml

        try:
            return tuple(int(process.pid) for process in getattr(pynvml, function)(self._handle))
        except pynvml.NVMLError:
            return ()


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
