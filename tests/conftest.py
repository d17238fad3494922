"""For all tests: kernels of a GPU run under Triton's interpreter where there is none, and hypothesis draws the same
examples in every run: what fails fails again, and no change fails for a draw. `make test-long` draws at random."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by whoever is first

if find_spec("hypothesis"):  # a GPU machine may lack it
    from hypothesis import settings

    settings.register_profile("same", derandomize=True, deadline=None)
    settings.register_profile("random", deadline=None, print_blob=True)
    settings.load_profile("same")
