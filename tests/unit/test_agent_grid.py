"""Steps and rungs: a policy chooses shares that the device has, and no bound is rounded away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.agent_plant import FakeClock

from semipd_agent.contract import SLO, AgentConfig, Bounds, Mode, PartitionConfig
from semipd_agent.control import SplitController
from semipd_agent.partitioner import Grant
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.mps.ladder import LADDER, quantize
from semipd_agent.slo.algorithm1 import _raise_decode, _raise_prefill
from semipd_agent.slo.grid import Grid
from semipd_engine.contract import Split

pytestmark = pytest.mark.unit
RUNGS = Grid(LADDER)
SHARE = st.integers(1, 100)


def test_without_rungs_a_step_is_ten_points() -> None:
    assert (Grid().up(55, 100), Grid().up(95, 100), Grid().down(55, 10), Grid().down(15, 10)) == (65, None, 45, None)
    assert Grid().bounded(7, 10, 90) == 10


@given(SHARE, SHARE)
def test_a_step_on_the_ladder_is_the_next_rung(share: int, bound: int) -> None:
    here = Split(prefill=share, decode=100)
    up, down = RUNGS.up(share, bound), RUNGS.down(share, bound)
    assert up is None or (up in LADDER and up <= bound and up > quantize(here).prefill)
    assert down is None or (down in LADDER and down >= bound and down < quantize(here).prefill)


@given(SHARE, SHARE, SHARE)
def test_no_bound_is_rounded_away_while_a_rung_lies_within(share: int, one: int, other: int) -> None:
    low, high = sorted((one, other))
    bounded = RUNGS.bounded(share, low, high)
    assert bounded in LADDER
    if any(low <= rung <= high for rung in LADDER):
        assert low <= bounded <= high


def test_algorithm_1_moves_from_rung_to_rung() -> None:
    bounds = Bounds(max_prefill_percent=90)
    split, seen = Split(prefill=60, decode=100), []
    while (raised := _raise_prefill(split, RUNGS, bounds)) is not None:
        seen.append((raised.prefill, raised.decode))
        split = raised
    assert seen == [(80, 100), (80, 80), (80, 60), (80, 50), (80, 40), (80, 30), (80, 20), (80, 10)]
    assert _raise_decode(Split(prefill=100, decode=80), RUNGS, Bounds()) == Split(prefill=100, decode=100)
    assert _raise_decode(Split(prefill=100, decode=100), RUNGS, Bounds()) == Split(prefill=80, decode=100)


class Laddered(CpuPaced):
    rungs = LADDER

    def quantize(self, want: Split) -> Split:
        return quantize(want)


def test_auto_is_quantized_within_its_bounds() -> None:
    partition = PartitionConfig(mode=Mode.AUTO, bounds=Bounds(max_prefill_percent=90))
    config = AgentConfig(slo=SLO(ttft_milliseconds=100), partition=partition)
    controller = SplitController(lambda _: Laddered(Grant(cpus=(0, 1))), config, FakeClock())
    assert controller.requested == Split(prefill=90, decode=100)
    assert controller.intent.split == Split(prefill=80, decode=100), "nearest would be 100, beyond the bound"
