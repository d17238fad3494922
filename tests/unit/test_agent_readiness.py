"""Readiness: live and verified workers of both phases; a short outage does not flip it."""

from __future__ import annotations

import pytest
from tests.unit.agent_bench import Bench, config
from tests.unit.agent_plant import worker

from semipd_agent.readiness import ReadyGate, engine_ready
from semipd_engine.contract import EngineState, Phase

pytestmark = pytest.mark.unit


def test_ready_needs_a_live_verified_worker_of_each_phase() -> None:
    bench = Bench(config())
    now = bench.clock.now
    assert engine_ready(bench.snapshot(), now)
    assert not engine_ready(None, now)
    assert not engine_ready(bench.snapshot(state=EngineState.LOADING), now)
    assert not engine_ready(bench.snapshot(state=EngineState.DRAINING), now)
    assert not engine_ready(bench.snapshot(workers=(worker(Phase.PREFILL, 1),)), now)
    assert not engine_ready(bench.snapshot(workers=(worker(Phase.PREFILL, 1), worker(Phase.DECODE, 1, age=9))), now)
    assert not engine_ready(bench.snapshot(), now + 5)


def test_a_short_outage_does_not_flip_ready_a_long_one_does() -> None:
    bench, gate = Bench(config()), ReadyGate()
    gate.update(None, 0.0)
    assert not gate.ready(0.0) and not gate.served
    bench.clock.now = 10.0
    gate.update(bench.snapshot(), 10.0)
    for t in (11.0, 12.0):  # out from 10.1 to 12.0
        gate.update(None, t)
        assert gate.ready(t)
    assert gate.ready(12.9)
    gate.update(None, 13.5)
    assert not gate.ready(13.5) and gate.served
    gate.update(bench.snapshot(monotonic_time=14.0), 14.0)
    assert gate.ready(14.0)
    gate.close()
    assert not gate.ready(14.0)


def test_what_is_heard_of_an_engine_after_sigterm_is_that_it_has_served_not_that_it_is_ready() -> None:
    bench, gate = Bench(config()), ReadyGate()
    gate.close()
    gate.update(bench.snapshot(state=EngineState.DRAINING), bench.clock.now)
    assert not gate.served
    gate.update(bench.snapshot(), bench.clock.now)
    assert gate.served and not gate.ready(bench.clock.now)
