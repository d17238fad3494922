"""The pacer on a fake machine: how long a quantum is, on which CPUs, and what may go while it runs."""

from __future__ import annotations

import socket
import threading
import time
from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
from tests.engine.fake_model import FakeRunner
from tests.unit.pacing_bench import CPUS, Machine, Pair

from semipd_engine.contract import PacingMode, Phase, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.ipc.frames import BlockingChannel, encode
from semipd_engine.ipc.steps import Continuation, CoreToWorker, Row, StepPlan
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.pacing.pacer import GRACE_NS, STALE_NS, PhasePacer
from semipd_engine.pacing.page import PacingPage
from semipd_engine.pacing.quantum import Unpaced
from semipd_engine.pacing.regime import Regime, regime_of
from semipd_engine.worker import loop
from semipd_engine.worker.servable import ServableModel

pytestmark = pytest.mark.unit


def test_a_ring_wakes_a_waiter_and_is_never_missed() -> None:
    page = PacingPage.create()
    same_page = PacingPage(page.fd)  # as another process maps it
    heard = page.bell.heard
    same_page.bell.ring()
    begin = time.monotonic()
    page.bell.wait(heard, 60)  # rung between look and sleep
    waiter = threading.Thread(target=page.bell.wait, args=(page.bell.heard, 60))
    waiter.start()
    while waiter.is_alive():
        same_page.bell.ring()
        waiter.join(0.01)
    assert time.monotonic() - begin < 30  # nowhere near the time-outs
    page.bell.wait(page.bell.heard, 0.001)  # nobody rings: the time is up


def test_alone_means_everything() -> None:
    pair = Pair(Split(prefill=50, decode=50), cpus=(0, 1, 2, 3))
    prefill = pair.machines[Phase.PREFILL]
    pair.pacers[Phase.PREFILL].wake()
    pair.pass_time(GRACE_NS)
    assert pair.quantum(Phase.PREFILL, 1000)
    assert (prefill.cpus, prefill.threads) == ((0, 1, 2, 3), 4)
    pair.pacers[Phase.DECODE].wake()
    assert pair.quantum(Phase.PREFILL, 1000)
    assert (prefill.cpus, prefill.threads, prefill.is_spread) == ((0, 1), 2, True)
    pair.pacers[Phase.DECODE].rest()
    assert pair.quantum(Phase.PREFILL, 1000)
    assert prefill.threads == 2  # between two plans decode has not really stopped
    pair.pass_time(GRACE_NS)
    assert pair.quantum(Phase.PREFILL, 1000)
    assert (prefill.cpus, prefill.threads, prefill.is_spread) == ((0, 1, 2, 3), 4, True)


def test_threads_that_are_born_later_are_moved_to_cpus_of_their_own() -> None:
    pair = Pair(Split())
    prefill = pair.machines[Phase.PREFILL]
    pair.pacers[Phase.PREFILL].wake()
    pair.pass_time(GRACE_NS)
    prefill.spreads, prefill.born = 0, 1
    assert pair.quantum(Phase.PREFILL, 1000) and prefill.spreads == 1
    assert not prefill.is_spread, "they inherit the main thread's mask: with one CPU all would be on it"
    prefill.born = 2  # with that quantum's work
    assert pair.quantum(Phase.PREFILL, 1000) and prefill.spreads == 2 and prefill.is_spread
    assert pair.quantum(Phase.PREFILL, 1000) and prefill.spreads == 2


def test_fewer_threads_than_cpus_have_one_each_for_a_quantum_and_roam_from_then_on() -> None:
    """A quota of two CPUs on a node of four."""
    plan = cpu_plan(Split(), (0, 1, 2, 3), threads=2)
    first = regime_of(plan, Phase.DECODE, contended=False, in_turn=False, had=Regime((2,), 1))
    assert (first.cpus, first.threads, first.spread) == ((2, 3, 0, 1), 2, True)
    assert not regime_of(plan, Phase.DECODE, contended=False, in_turn=False, had=first).spread


@pytest.mark.parametrize(
    ("split", "cpus", "both"), [((50, 50), CPUS, 0.02), ((80, 20), CPUS, 4 / 375), ((50, 50), (0,), 0.004)]
)
def test_a_quantum_is_short_only_where_somebody_may_wait_for_its_end(
    split: tuple[int, int], cpus: tuple[int, ...], both: float
) -> None:
    """Own cores; turns for the second core, where half a turn is 4 ms x 2 CPUs / 0.2, gained by 1 / 0.2 a ms while the
    other one gains 1 / 0.8; turns for the only one."""
    pair = Pair(Split(prefill=split[0], decode=split[1]), cpus)
    decode = pair.pacers[Phase.DECODE]
    decode.wake()
    pair.pass_time(GRACE_NS)
    with decode.quantum() as seconds:
        assert seconds == 0.02
    pair.pacers[Phase.PREFILL].wake()
    with decode.quantum() as seconds:  # it wins the tie
        assert seconds == pytest.approx(both)


def test_a_prompt_lets_the_quantum_end_that_decode_began_on_all_cpus() -> None:
    """Two threads on one CPU would hold up a step of all streams; a prompt can wait for 25 ms."""
    pair = Pair(Split())
    decode, prefill = (pair.machines[phase] for phase in (Phase.DECODE, Phase.PREFILL))
    pair.pacers[Phase.DECODE].wake()
    pair.pass_time(GRACE_NS)
    with pair.pacers[Phase.DECODE].quantum():
        assert sorted(decode.cpus) == sorted(CPUS)
        pair.pacers[Phase.PREFILL].wake()
        assert not pair.quantum(Phase.PREFILL, 1000)
        assert 0 < prefill.waited < 0.025
    assert decode.rings == 1
    assert pair.quantum(Phase.PREFILL, 1000)
    with pair.pacers[Phase.DECODE].quantum():
        assert decode.cpus == (1,)
        assert pair.quantum(Phase.PREFILL, 1000)
    assert decode.rings == 1


def test_a_quantum_that_does_not_end_holds_no_prompt_up() -> None:
    pair = Pair(Split())
    pair.pacers[Phase.DECODE].wake()
    pair.pass_time(GRACE_NS)
    pair.machines[Phase.PREFILL].wait = lambda heard, seconds: pair.pass_time(round(seconds * 1e9))
    with pair.pacers[Phase.DECODE].quantum():  # stopped, or killed, in the midst of it
        pair.pacers[Phase.PREFILL].wake()
        before = pair.clock[0]
        assert pair.quantum(Phase.PREFILL, 0)
        assert pair.clock[0] - before == 25_000_000
        for _ in range(30):  # until core sees the death, or the heartbeat is stale
            assert pair.quantum(Phase.PREFILL, 0)
        assert pair.clock[0] - before == 25_000_000
    pair.pass_time(GRACE_NS + 1)
    pair.pacers[Phase.DECODE].start(pid=103, generation=2)  # a new one, whose quanta are waited for as before
    pair.pacers[Phase.PREFILL].rest()
    pair.pass_time(GRACE_NS)
    pair.pacers[Phase.DECODE].wake()
    with pair.pacers[Phase.DECODE].quantum():
        pair.pacers[Phase.PREFILL].wake()
        before = pair.clock[0]
        assert pair.quantum(Phase.PREFILL, 0)
        assert pair.clock[0] - before == 25_000_000


def test_a_plan_is_adopted_while_idle_and_only_if_it_can_be() -> None:
    pair = Pair(Split())
    seat = pair.page.seats[Phase.PREFILL][0]
    assert seat.applied_epoch == 1
    pair.page.write_plan(2, cpu_plan(Split(prefill=80, decode=20), CPUS))
    assert seat.applied_epoch == 1
    pair.pacers[Phase.PREFILL].refresh()
    assert seat.applied_epoch == 2
    pair.page.write_plan(3, cpu_plan(Split(), (98, 99)))  # decode's core does not exist
    for pacer in pair.pacers.values():
        pacer.refresh()
    assert (seat.applied_epoch, pair.page.seats[Phase.DECODE][0].applied_epoch) == (3, 1)


@pytest.mark.parametrize("split", [Split(), Split(prefill=80, decode=20), Split(prefill=20, decode=20)], ids=str)
def test_cpus_that_were_taken_away_cost_no_step(split: Split) -> None:
    """The node may shrink a container's CPUs at any time: the limit is not applied, and the work is done."""
    pair = Pair(Split())
    for phase in Phase:
        pair.machines[phase].on_sleep = lambda seconds: pair.pass_time(int(seconds * 1e9))
        pair.pacers[phase].wake()
    pair.page.write_plan(2, cpu_plan(split, (99, 100)))
    done = [phase for _ in range(20) for phase in Phase if pair.quantum(phase, 1_000_000)]
    assert set(done) == set(Phase)
    assert pair.page.seats[Phase.PREFILL][0].applied_epoch != 2
    assert pair.machines[Phase.PREFILL].shared == [None], "no lock is left behind"


def test_an_epoch_whose_cpus_go_later_is_not_applied_any_more() -> None:
    pair = Pair(Split())
    prefill, seat = pair.machines[Phase.PREFILL], pair.page.seats[Phase.PREFILL][0]
    pair.pacers[Phase.PREFILL].wake()
    pair.pass_time(GRACE_NS)
    assert pair.quantum(Phase.PREFILL, 1000) and seat.applied_epoch == 1

    def gone(cpus: Sequence[int]) -> None:
        raise OSError("no such CPU")

    prefill.pin, there = gone, prefill.pin  # type: ignore[method-assign]
    pair.pacers[Phase.DECODE].wake()
    for _ in range(2):
        assert pair.quantum(Phase.PREFILL, 1000) and seat.applied_epoch == 0
    prefill.pin = there  # type: ignore[method-assign]
    assert pair.quantum(Phase.PREFILL, 1000)
    assert (prefill.cpus, seat.applied_epoch) == ((0,), 1), "the CPUs are back, and so is the limit"


def test_a_plan_whose_cpus_come_later_is_applied_then() -> None:
    pair = Pair(Split())
    decode, seat = pair.machines[Phase.DECODE], pair.page.seats[Phase.DECODE][0]
    there = decode.pin

    def gone(cpus: Sequence[int]) -> None:
        raise OSError("no such CPU")

    decode.pin = gone  # type: ignore[method-assign]
    pair.page.write_plan(2, cpu_plan(Split(), CPUS))
    for _ in range(2):
        pair.pacers[Phase.DECODE].refresh()
        assert seat.applied_epoch == 1
    decode.pin = there  # type: ignore[method-assign]
    pair.pacers[Phase.DECODE].refresh()
    assert seat.applied_epoch == 2


def test_one_process_for_both_phases_is_never_limited() -> None:
    page = PacingPage.create()
    page.write_plan(1, cpu_plan(Split(prefill=20, decode=20), CPUS))
    machine = Machine([STALE_NS], [None])
    pacer = PhasePacer(page, Phase.PREFILL, None, machine)
    pacer.start(pid=1, generation=1)
    pacer.wake()
    with pacer.quantum():
        assert (machine.cpus, machine.threads, machine.shared) == (CPUS, 2, [None])


def test_a_worker_without_quanta_is_bound_to_no_part_of_the_cpus() -> None:
    """A GPU's: its threads are not the CPUs' work, and nothing would ever widen what the plan's adoption narrowed."""
    page, machine = PacingPage.create(), Machine([STALE_NS], [None])
    page.write_plan(1, cpu_plan(Split(), (0, 1, 2, 3)))
    PhasePacer(page, Phase.DECODE, None, machine).start(pid=1, generation=1)
    assert (machine.cpus, machine.is_spread) == ((0, 1, 2, 3), False)


def test_a_plan_that_is_continued_beats_with_each_step_where_nobody_paces_the_model() -> None:
    """As on a GPU: core kills a worker that is silent for a minute, and the agent names it after three seconds. A new
    split is adopted meanwhile."""
    core, end = socket.socketpair()
    channel: BlockingChannel[CoreToWorker] = BlockingChannel(end, CoreToWorker)
    page, clock, silences = PacingPage.create(), [STALE_NS], list[int]()
    seat = page.seats[Phase.DECODE][0]
    page.write_plan(1, cpu_plan(Split(), CPUS))
    pacer = PhasePacer(page, Phase.DECODE, None, Machine(clock, [None]))
    pacer.start(pid=1, generation=1)

    def a_second_passes(rows: int) -> float:
        clock[0] += STALE_NS
        silences.append(clock[0] - seat.heartbeat_ns)
        return 0.0

    runner = FakeRunner(memoryview(array("i", [-1] * 64)), 4, Unpaced(), decode_seconds=a_second_passes)
    row = Row(7, [5], 0, list(range(16)), outputs="last", sampling=Sampling(temperature=0, max_tokens=50))
    for seq in (3, 5, 7):
        core.sendall(encode(Continuation(seq, 2, [(7, [])])))
    page.write_plan(2, cpu_plan(Split(prefill=80, decode=20), CPUS))
    model = cast(ServableModel, SimpleNamespace(is_fatal=lambda error: True))
    loop._execute(StepPlan(1, 2, [row]), model, runner, page.recalled, pacer, channel)
    assert silences == [STALE_NS] * 8 and seat.steps == 8
    assert seat.applied_epoch == 2


def test_the_page_survives_a_writer_that_died_half_way() -> None:
    page = PacingPage.create()
    assert page.read_plan() is None
    page.write_plan(1, cpu_plan(Split(), CPUS))
    page._words[1] += 1  # odd: the writer is inside
    assert page.read_plan() is None
    page.write_plan(2, cpu_plan(Split(prefill=30, decode=60), CPUS))
    in_force = PacingPage(page.fd).read_plan()
    assert in_force is not None and in_force.epoch == 2
    assert in_force.plan.split == Split(prefill=30, decode=60) and in_force.plan.mode is PacingMode.QUANTA
