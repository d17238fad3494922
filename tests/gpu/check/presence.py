"""Is there a GPU here, and what the parts import? Each answer is one line, or nothing where all is well.

Standard library only, and no driver call in this process: the agent's own probe asks, as a program of its own, so a
driver that hangs or crashes is a line as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

NO_DRIVER = -1
WORDS = {
    NO_DRIVER: "the driver's libcuda.so.1 is not here; start the container with its GPU (--gpus all, nvidia.com/gpu)",
    34: "libcuda.so.1 is the toolkit's stub, not the driver's",  # CUDA_ERROR_STUB_LIBRARY
    100: "the driver shows none to this process; start the container with its GPU (--gpus all, nvidia.com/gpu)",
    101: "the driver shows none to this process; look at CUDA_VISIBLE_DEVICES",  # CUDA_ERROR_INVALID_DEVICE
    803: "the driver's library and its kernel module are of different versions",  # CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
}
"""By CUresult: what `cuInit` and `cuDeviceGet` say where no GPU can be used."""
PROBE = (sys.executable, "-I", str(Path(__file__).parents[3] / "agent/semipd_agent/partitioner/mps/probe.py"))
PATIENCE_S = 30.0
NEEDED = (
    "torch",
    "numpy",
    "msgspec",
    "pydantic",
    "httpx",
    "prometheus_client",
    "safetensors",
    "transformers",
    "pytest",
)
"""What the parts import, a package for each wheel that others lean on; torch and numpy are the image's."""


def no_gpu(command: Sequence[str] | None = None) -> str:
    """Why no part can run here; empty: there is a GPU. `command`: the probe, or its stand-in."""
    try:
        done = subprocess.run(command or PROBE, capture_output=True, text=True, timeout=PATIENCE_S)
        code = int(json.loads(done.stdout)["error"])
    except subprocess.TimeoutExpired:
        return f"no GPU: the driver does not answer within {PATIENCE_S:g} s"
    except (ValueError, KeyError):
        return f"no GPU: a program that asks the driver ended with {done.returncode}"
    return f"no GPU: {WORDS.get(code, f'the driver refuses with CUresult {code}')}" if code else ""


def lacking(names: Sequence[str] = NEEDED) -> str:
    """What is not installed here; empty: all is."""
    absent = [name for name in names if find_spec(name) is None]
    return f"not here: {', '.join(absent)}; `make gpu-wheels` brings all but torch (--wheels DIR)" if absent else ""
