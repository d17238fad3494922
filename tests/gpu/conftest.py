"""Tests that need one NVIDIA GPU: collected everywhere, skipped where there is none."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    return torch.device("cuda", 0)
