"""The engine's tests run on both devices: on the CPU in the engine tier, on a GPU in the gpu tier."""

from __future__ import annotations

import pytest
import torch
from tests.engine.devices import CPU, CUDA


@pytest.fixture(scope="session", params=(CPU, CUDA))
def device(request: pytest.FixtureRequest) -> torch.device:
    """Skips for want of a GPU only."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    return torch.device(request.param)
