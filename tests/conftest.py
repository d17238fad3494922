"""For all tests: kernels of a GPU run under Triton's interpreter where there is none, and hypothesis draws the same
examples in every run, however long they take: what fails fails again, and no change fails for a draw or for a clock.
`make test-long` draws at random."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by whoever is first

if find_spec("hypothesis"):  # a GPU machine may lack it
    from hypothesis import HealthCheck, Phase, settings

    untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # both are clocks
    settings.register_profile("same", untimed, derandomize=True)
    # Whoever wants to know that a test fails, and not by which example, does not wait for a smaller one.
    settings.register_profile("first", untimed, derandomize=True, phases=[Phase.explicit, Phase.generate])
    # Said aloud: where the variable CI is set, hypothesis' own default draws the same as well.
    settings.register_profile("random", untimed, derandomize=False, print_blob=True)
    settings.load_profile("same")


@pytest.fixture
def as_at_a_terminal() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and so would every program that is started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
