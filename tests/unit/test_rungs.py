"""Which partition is in force and where a phase's next step goes, without a process."""

from __future__ import annotations

import pytest
from tests.engine.rungs import DEVICE_SMS, limit, plan, plan_of

from semipd_engine.contract import PacingMode, PartitionPlan, Phase, PhaseLimit, SetPartition, Split
from semipd_engine.core.partitions import Partitions, Rung, contradiction, initial_partition
from semipd_engine.cpu_plan import cpu_plan

pytestmark = pytest.mark.unit

PHASES = tuple(Phase)


class Warm:
    """Who is ready."""

    def __init__(self, *rungs: tuple[str, int, int]) -> None:
        self.rungs = {(Phase(phase), rung_of(percent, daemon)) for phase, percent, daemon in rungs}

    def __call__(self, phase: Phase, rung: Rung) -> bool:
        return (phase, rung) in self.rungs


def rung_of(percent: int, daemon: int = 1) -> Rung:
    return Rung.of(limit(percent, daemon), PacingMode.RUNGS)


def started(first: PartitionPlan) -> Partitions:
    partitions = Partitions(PHASES, initial_partition(cpu_plan(Split(), [0])), 60.0, await_first=True)
    partitions.propose(SetPartition(split_epoch=1, plan=first), now=0.0)
    assert partitions.tick(0.0, Warm()) is not None
    return partitions


def percents(rungs: tuple[Rung, ...]) -> list[int | None]:
    return [rung.percent for rung in rungs]


def test_nobody_is_wanted_before_the_first_partition() -> None:
    partitions = Partitions(PHASES, initial_partition(cpu_plan(Split(), [0])), 60.0, await_first=True)
    assert partitions.awaiting and partitions.wanted(Phase.PREFILL) == ()
    partitions.propose(SetPartition(split_epoch=1, plan=plan(60, 40)), now=0.0)
    changed = partitions.tick(0.0, Warm())
    assert changed is partitions.in_force and not partitions.awaiting
    assert percents(partitions.wanted(Phase.PREFILL)) == [60, 100]
    assert percents(partitions.wanted(Phase.DECODE)) == [40, 100]


def test_a_phase_alone_has_the_whole_device() -> None:
    partitions = started(plan(60, 40))
    assert percents(partitions.route(Phase.DECODE, alone=False)) == [40, 100]
    assert percents(partitions.route(Phase.DECODE, alone=True))[:2] == [100, 40]
    at_hundred = started(plan(100, 40))
    assert percents(at_hundred.wanted(Phase.PREFILL)) == [100]  # one worker is both


def test_warm_rungs_switch_at_once_and_together() -> None:
    partitions = started(plan(60, 40))
    partitions.propose(SetPartition(split_epoch=2, plan=plan(100, 40)), now=5.0)
    assert partitions.tick(5.0, Warm(("prefill", 100, 1))) is not None
    partitions.propose(SetPartition(split_epoch=3, plan=plan(20, 80)), now=6.0)
    assert partitions.tick(6.0, Warm(("prefill", 20, 1))) is None  # decode's is cold: neither phase moves
    assert percents(partitions.route(Phase.PREFILL, alone=False))[0] == 100
    assert percents(partitions.kept(Phase.DECODE)) == [40, 100, 80, 100]
    assert percents(partitions.wanted(Phase.DECODE)) == [80, 100]
    assert partitions.tick(9.0, Warm(("prefill", 20, 1), ("decode", 80, 1))) is not None
    assert percents(partitions.kept(Phase.PREFILL)) == [20, 100]
    assert percents(partitions.kept(Phase.DECODE)) == [80, 100]


def test_a_rung_that_never_becomes_ready_changes_nothing() -> None:
    partitions = started(plan(60, 40))
    before = partitions.in_force
    partitions.propose(SetPartition(split_epoch=2, plan=plan(60, 30)), now=5.0)
    assert partitions.tick(64.9, Warm()) is None and partitions.pending is not None
    assert partitions.tick(65.0, Warm()) is None and partitions.pending is None
    assert partitions.in_force is before
    assert partitions.refused is not None
    assert (partitions.refused.split_epoch, partitions.refused.reason) == (2, "PrepareTimeout")
    assert "decode worker under 30 %" in partitions.refused.message
    partitions.propose(SetPartition(split_epoch=2, plan=plan(60, 30)), now=66.0)  # the same epoch: no second attempt
    assert partitions.pending is None
    partitions.propose(SetPartition(split_epoch=3, plan=plan(60, 30)), now=67.0)
    assert partitions.tick(68.0, Warm(("decode", 30, 1))) is not None
    assert partitions.refused is None


def test_a_newer_partition_takes_the_place_of_a_pending_one() -> None:
    partitions = started(plan(60, 40))
    partitions.propose(SetPartition(split_epoch=2, plan=plan(60, 30)), now=0.0)
    partitions.propose(SetPartition(split_epoch=3, plan=plan(70, 40)), now=1.0)
    assert percents(partitions.kept(Phase.DECODE)) == [40, 100, 40, 100]  # 30 is not being prepared any more
    assert partitions.tick(2.0, Warm(("decode", 30, 1))) is None
    assert partitions.tick(3.0, Warm(("prefill", 70, 1))) is not None
    assert partitions.in_force.split_epoch == 3


def test_an_unfit_worker_refuses_what_needs_it_only() -> None:
    partitions = started(plan(60, 40))
    partitions.propose(SetPartition(split_epoch=2, plan=plan(60, 30)), now=0.0)
    partitions.unfit(Phase.DECODE, rung_of(40), "WorkerDied", "x")  # in force: reported, and the other one goes on
    assert partitions.refused is not None and partitions.refused.split_epoch == 1
    assert partitions.pending is not None
    partitions.unfit(Phase.DECODE, rung_of(30), "SMCountMismatch", "x")
    assert partitions.pending is None
    assert (partitions.refused.split_epoch, partitions.refused.reason) == (2, "SMCountMismatch")
    partitions.recovered()  # of the epoch in force: says nothing about the refused one
    assert partitions.refused.split_epoch == 2


def test_a_new_daemon_makes_every_rung_cold_and_replaces_no_dead_worker_of_the_old_one() -> None:
    partitions = started(plan(60, 40))
    partitions.propose(SetPartition(split_epoch=2, plan=plan(60, 40, daemon=2)), now=0.0)
    assert partitions.tick(1.0, Warm(("prefill", 60, 1), ("decode", 40, 1), ("prefill", 60, 2))) is None
    assert set(partitions.wanted(Phase.PREFILL)) == {rung_of(60, 2), rung_of(100, 2)}
    assert set(partitions.kept(Phase.PREFILL)) == {rung_of(p, d) for p in (60, 100) for d in (1, 2)}
    assert partitions.tick(2.0, Warm(("prefill", 60, 2), ("decode", 40, 2))) is not None
    assert set(partitions.kept(Phase.PREFILL)) == {rung_of(60, 2), rung_of(100, 2)}


def test_on_the_cpu_all_splits_are_one_rung() -> None:
    partitions = Partitions(PHASES, initial_partition(cpu_plan(Split(), [0, 1])), 60.0, await_first=False)
    rungs = partitions.wanted(Phase.PREFILL)
    for epoch, split in enumerate((Split(prefill=80, decode=20), Split(prefill=50, decode=50)), start=1):
        partitions.propose(SetPartition(split_epoch=epoch, plan=cpu_plan(split, [0, 1])), now=0.0)
        assert partitions.tick(0.0, Warm()) is not None  # nobody is ready, and nobody is waited for
        assert partitions.kept(Phase.PREFILL) == rungs == partitions.route(Phase.PREFILL, alone=True)


def test_one_process_for_both_phases_has_the_whole_device() -> None:
    partitions = Partitions((Phase.DECODE,), initial_partition(plan(60, 40)), 60.0, await_first=False)
    assert percents(partitions.wanted(Phase.DECODE)) == [100]


@pytest.mark.parametrize(
    ("expected", "seen", "wrong"),
    [
        (None, 132, ""),
        (78, 78, ""),
        (78, 76, "sees 76 SMs, 78 are expected"),
        (78, 132, "not a client of MPS"),
        (132, 132, ""),
        (78, None, "no streaming multiprocessors"),
    ],
)
def test_the_sm_count_is_judged_by_what_the_worker_sees(expected: int | None, seen: int | None, wrong: str) -> None:
    rung = Rung.of(PhaseLimit(percent=60, sm_count=expected), PacingMode.RUNGS)
    found = contradiction(rung, seen, DEVICE_SMS)
    assert wrong in (found or "") and bool(found) == bool(wrong)


def test_rungs_are_told_apart_by_their_environment_alone() -> None:
    same = PhaseLimit(percent=61, environment=limit(60).environment, sm_count=1)
    assert Rung.of(same, PacingMode.RUNGS) == rung_of(60) != rung_of(60, daemon=2)
    assert plan_of(limit(60), limit(60)).prefill == plan(60, 60).decode


def test_rungs_of_one_worker_are_told_apart_by_their_number() -> None:
    """``mps-green``: equal environments, and each move is warm once the worker is there."""
    one, two = (PhaseLimit(percent=p, environment={"A": "1"}, rung=n, sm_count=8 * n) for p, n in ((20, 1), (40, 2)))
    rungs = [Rung.of(each, PacingMode.RUNGS) for each in (one, two)]
    assert rungs[0] != rungs[1] and rungs[0].environment == rungs[1].environment
    assert [(rung.index, rung.alone, rung.sm_count) for rung in rungs] == [(1, False, 8), (2, False, 16)]
    assert rung_of(60).alone and rung_of(60).index == 0
