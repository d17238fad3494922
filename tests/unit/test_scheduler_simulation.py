"""Alloc, share, abort, preempt, switch, crash, stale slot, late mask, in any order: no token changes, nobody is lost.

What must hold is said in `scheduler_model`. A pool without quarantine must fail here, and others with defects: that is
tested, too.
"""

from __future__ import annotations

import pytest
from tests.unit.scheduler_model import Simulation

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool

pytestmark = pytest.mark.unit

STEPS = 25_000
"""Of each run, 2 x 10^5 in all: thousands of requests, hundreds of preemptions and crashes. `make test-long`: 10^6."""
EVENTS = {"share", "stop", "abort", "preempt", "switch", "crash", "resident", "stale", "late", "score"}
AHEAD = {"ahead", "late ahead"}
"""Decode's worker went on with what continued its plan, and that came too late."""


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize(("seed", "aggregated"), [(0, False), (1, False), (2, True), (3, None)])
def test_no_token_changes_and_the_accounts_are_right_whatever_happens(
    seed: int, aggregated: bool | None, ahead: bool
) -> None:
    simulation = Simulation(seed, BlockPool, aggregated=aggregated, ahead=ahead)
    simulation.run(STEPS)
    events = EVENTS | (AHEAD if ahead and not aggregated else set())  # where prompts share steps they always wait
    assert {event for event in events if simulation.seen[event] < 3} == set()
    assert ahead or not simulation.seen["sent"]


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
def test_wrong_accounts_cost_no_request_its_life_and_change_no_token(ahead: bool) -> None:
    simulation = Simulation(4, BlockPool, aggregated=None, defects=True, ahead=ahead)
    for _ in range(10_000):
        simulation.step()
    assert simulation.scheduler.accounting_faults > 10
    simulation.drain()
    assert simulation.wrong == 0
    assert simulation.finished == set(simulation.requests)


class NoQuarantine(BlockPool):
    """Blocks are reused as soon as they are released."""

    def _passed(self, state: object) -> bool:
        return True


class ForgetsDecode(BlockPool):
    """Prefill's clock alone is looked at."""

    def _passed(self, state: object) -> bool:
        return self.clocks[Phase.PREFILL].completed >= state.prefill_step  # type: ignore[attr-defined,no-any-return]


class SharesUsed(BlockPool):
    """A block is given out that somebody has."""

    def allocate(self, count: int) -> list[int]:
        taken = super().allocate(count)
        used = [block for block, state in enumerate(self._blocks) if state.references and block not in taken]
        return [*taken[:-1], used[0]] if used and taken and len(used) > 8 else taken


@pytest.mark.parametrize("pool", [NoQuarantine, ForgetsDecode, SharesUsed])
@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("looks", [True, False])
def test_a_pool_with_a_defect_is_caught(pool: type[BlockPool], looks: bool, ahead: bool) -> None:
    """By the accounts, and by a wrong token where nobody looks at them."""
    simulation = Simulation(0, pool, ahead=ahead)
    simulation.looks = looks
    with pytest.raises(AssertionError):
        simulation.run(10_000)
