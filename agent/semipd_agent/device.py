"""Which device ``auto`` means: a GPU where the driver shows one, else the CPU. Starts nothing on it."""

from __future__ import annotations

import os

from semipd_engine.contract import Device


def resolve_device(asked: Device) -> Device:
    if asked is not Device.AUTO:
        return asked
    return Device.CUDA if _visible_gpus() else Device.CPU


def _visible_gpus() -> int:
    """GPUs that NVML counts; 0 without a driver, or where CUDA_VISIBLE_DEVICES hides them all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
