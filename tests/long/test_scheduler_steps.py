"""The scheduler's model for 10^6 steps, of which `make test` makes a fifth: other seeds, pools and modes."""

from __future__ import annotations

import pytest
from tests.unit.scheduler_model import Simulation

from semipd_engine.core.block_pool import BlockPool

pytestmark = pytest.mark.long

STEPS = 100_000


@pytest.mark.parametrize("seed", range(100, 110))
def test_nothing_that_must_not_be_happens(seed: int) -> None:
    modes = (False, True, None)
    num_blocks, aggregated = (14, 20, 40)[seed // 3 % 3], modes[seed % 3]
    Simulation(seed, BlockPool, num_blocks, aggregated, ahead=seed % 2 == 1).run(STEPS)
