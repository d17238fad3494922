"""The devices that the engine's tests run on, each in its own tier."""

from __future__ import annotations

import pytest

CPU = pytest.param("cpu", marks=pytest.mark.engine)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
