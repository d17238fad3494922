"""Stands in for nvidia-ml-py where there is no driver: the few calls that the agent makes, answered from a JSON file.

The file (NVML_STAND_IN) is read at every call. ``{}`` is a healthy H100; fields change it. Without the variable there
is no driver, as on any machine without a GPU. Names and errors are NVML's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

nvmlEventTypeXidCriticalError = 8


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


class NVMLError_Timeout(NVMLError):
    pass


class NVMLError_GpuIsLost(NVMLError):
    pass


_told = 0
"""Xids that were told already."""


def _machine() -> dict[str, Any]:
    path = os.environ.get("NVML_STAND_IN", "")
    if not path:
        raise NVMLError("Driver Not Loaded")
    machine: dict[str, Any] = json.loads(Path(path).read_text())
    if machine.get("lost"):
        raise NVMLError_GpuIsLost("GPU is lost")
    return machine


def nvmlInit() -> None:
    _machine()


def nvmlShutdown() -> None:
    return None


def nvmlDeviceGetCount() -> int:
    return int(_machine().get("gpus", 1))


def nvmlDeviceGetHandleByIndex(index: int) -> str:
    return f"handle {index}"


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:
    return f"handle {uuid}"


def nvmlDeviceGetUUID(handle: str) -> bytes:
    return handle.replace("handle ", "GPU-").encode()


def nvmlDeviceGetName(handle: str) -> str:
    return str(_machine().get("name", "Stand-in H100"))


def nvmlSystemGetDriverVersion() -> str:
    return "580.1"


def nvmlDeviceGetComputeMode(handle: str) -> int:
    return int(_machine().get("compute_mode", 0))


def nvmlDeviceGetMigMode(handle: str) -> tuple[int, int]:
    mig = _machine().get("mig", 0)
    if mig is None:
        raise NVMLError_NotSupported("Not Supported")
    return (int(mig), int(mig))


def _processes(kind: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid) for pid in _machine().get(kind, [])]


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return _processes("processes")


def nvmlDeviceGetMPSComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return _processes("mps_clients")


def nvmlDeviceGetMemoryInfo(handle: str) -> SimpleNamespace:
    return SimpleNamespace(used=int(_machine().get("used", 1 << 30)), total=80 << 30)


def nvmlDeviceGetUtilizationRates(handle: str) -> SimpleNamespace:
    utilization = _machine().get("utilization", 25)
    if utilization is None:
        raise NVMLError_NotSupported("Not Supported")
    return SimpleNamespace(gpu=int(utilization))


def nvmlDeviceGetSupportedEventTypes(handle: str) -> int:
    return nvmlEventTypeXidCriticalError if _machine().get("events", True) else 0


def nvmlEventSetCreate() -> str:
    return "events"


def nvmlDeviceRegisterEvents(handle: str, types: int, events: str) -> None:
    return None


def nvmlEventSetWait_v2(events: str, milliseconds: int) -> SimpleNamespace:
    global _told
    xids = _machine().get("xids", [])
    if len(xids) <= _told:
        raise NVMLError_Timeout("Timeout")
    _told += 1
    return SimpleNamespace(eventData=xids[_told - 1])
