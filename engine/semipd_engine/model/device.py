"""Which device the model runs on, and how torch is set up for it. Touches a GPU only when it is asked for one."""

from __future__ import annotations

import torch

from semipd_engine.cards.errors import ModelError
from semipd_engine.contract import Device

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


def resolve(asked: Device) -> torch.device:
    """`auto` is the GPU where the driver shows one. Raises `ModelError`: NoGPU, CUDAUnavailable."""
    if asked is Device.CPU:
        return CPU
    visible = torch.cuda.device_count() if torch.version.cuda else 0
    if visible == 0:
        if asked is Device.AUTO:
            return CPU
        _explain()
    return GPU


def open_gpu() -> None:
    """Make this process's context on the GPU and set torch up for it. Raises `ModelError` (CUDAUnavailable)."""
    try:
        torch.cuda.set_device(GPU)
        torch.cuda.synchronize(GPU)
    except (RuntimeError, AssertionError) as error:
        raise ModelError("CUDAUnavailable", f"--device cuda: the GPU cannot be used: {_first_line(error)}") from error


def set_precision(dtype: torch.dtype) -> None:
    """In float32 every operation is float32, with the one attention kernel that is exact: for comparing tokens."""
    torch.set_float32_matmul_precision("highest")
    exact = dtype == torch.float32
    torch.backends.cuda.enable_flash_sdp(not exact)
    torch.backends.cuda.enable_mem_efficient_sdp(not exact)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it builds a plan for every new shape, and each step has new ones
    torch.backends.cuda.enable_math_sdp(True)


def _explain() -> None:
    if not torch.version.cuda:
        raise ModelError(
            "CUDAUnavailable",
            "--device cuda (engine.device): this torch is built without CUDA; install its ordinary build, or use cpu",
        )
    raise ModelError(
        "NoGPU",
        "--device cuda (engine.device): no NVIDIA GPU is visible here; give the container one (nvidia.com/gpu in "
        "engine.resources), check the driver and CUDA_VISIBLE_DEVICES, or use cpu",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
