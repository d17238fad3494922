"""Decode's plan behind the one that runs: what is in it, what it waits for, and how both end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from tests.unit.scheduler_bench import add, decode, done, outputs, prefill, scheduler

from semipd_engine.contract import Phase, Split
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.dispatch import Dispatcher
from semipd_engine.core.holder import Holder
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.observation import Observer
from semipd_engine.core.partitions import Rung
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.plans import UNKNOWN, continuation
from semipd_engine.core.routing import Route, Router
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.step_log import StepLog
from semipd_engine.ipc.frames import encode
from semipd_engine.ipc.steps import StepFailed, StepPlan, StepResult, TokenResult
from semipd_engine.pacing.page import PacingPage

pytestmark = pytest.mark.unit


def ahead(num_blocks: int = 100) -> Scheduler:
    s = scheduler(num_blocks)
    s.limits = SchedulerLimits(64, max_num_seqs=8, prefill_chunk_tokens=8, plans_ahead=True)
    return s


def behind(s: Scheduler) -> StepPlan:
    plan = s.plan_behind()
    assert plan is not None
    return plan


def running(s: Scheduler, *max_tokens: int, stop: tuple[int, ...] = ()) -> StepPlan:
    for number, most in enumerate(max_tokens, 1):
        add(s, number, 3, max_tokens=most, stop=stop)
        done(s, prefill(s), token=11)
    return decode(s)


def test_it_goes_on_where_the_plan_ends_with_those_who_do() -> None:
    s = ahead()
    plan = running(s, 40, 9, 12)
    next_one = behind(s)
    assert (plan.seq, plan.max_steps, next_one.seq, next_one.max_steps) == (1, 8, 9, 8)
    assert [row.request for row in next_one.rows] == [1, 3], "the second ends with its eighth token in this plan"
    assert [(row.tokens, row.start, row.output_index) for row in next_one.rows] == [([UNKNOWN], 11, 9)] * 2
    assert s.plan_behind() is None, "one ahead"
    assert s.plan_decode() is None and s.in_flight[Phase.DECODE] is plan
    # Blocks of 4: positions up to 10 have three, those up to 18 five, and the third row's last position is 13.
    sent = continuation(plan, next_one)
    assert [(request, len(blocks)) for request, blocks in sent.rows] == [(1, 2), (3, 1)]
    for row, (_, blocks) in zip(next_one.rows, sent.rows, strict=True):
        first = next(each for each in plan.rows if each.request == row.request)
        assert first.block_table + blocks == row.block_table


def test_with_the_plans_last_step_the_next_one_is_in_flight() -> None:
    s = ahead()
    plan = running(s, 40)
    next_one = behind(s)
    for step in range(8):
        done(s, plan, token=20 + step, step=step)
    assert s.in_flight[Phase.DECODE] is next_one and s.behind is None
    done(s, next_one, token=99)
    assert s.table.by_id[1].token_ids[-2:] == [27, 99]
    assert behind(s).seq == 17


def test_an_early_end_ends_what_is_behind_it() -> None:
    s = ahead()
    plan = running(s, 40)
    late = behind(s)
    add(s, 2, 3)
    done(s, prefill(s))
    assert s.take_recall() == late.seq, "both end at the next step"
    s.book(Phase.DECODE, StepResult(plan.seq, [TokenResult(1, 12)], last=True), 3.0)
    assert s.in_flight == {} and s.behind is None
    again = decode(s)
    assert [(row.request, row.start) for row in again.rows] == [(1, 4), (2, 3)] and again.seq == 17
    assert not s.plan_stale(Phase.DECODE, late.seq), "its worker says so, too, later"
    assert s.in_flight[Phase.DECODE] is again


def test_what_comes_too_late_is_planned_anew() -> None:
    s = ahead()
    plan = running(s, 40)
    late = behind(s)
    for step in range(8):
        done(s, plan, step=step)
    assert s.plan_stale(Phase.DECODE, late.seq)
    assert decode(s).rows[0].start == late.rows[0].start


@pytest.mark.parametrize("how", ["failed", "lost", "resident"])
def test_trouble_takes_both(how: str) -> None:
    s = ahead()
    plan = running(s, 40, 40)
    behind(s)
    match how:
        case "failed":
            s.plan_failed(Phase.DECODE, StepFailed(plan.seq, "oops"))
        case "lost":
            s.worker_lost(Phase.DECODE)
        case _:
            s.replace_kv(s.kv)
    assert s.in_flight == {} and s.behind is None


def test_who_stops_late_has_its_blocks_until_the_step_that_may_have_begun_is_over() -> None:
    """At the plan's last step: it may have begun the next plan's first."""
    s = ahead()
    plan = running(s, 40, 40, stop=(9,))
    next_one = behind(s)
    for step in range(7):
        done(s, plan, step=step)
    outputs(s)
    held = len(s.table.by_id[1].blocks.table)
    last = [TokenResult(1, 9), TokenResult(2, 8)]
    s.book(Phase.DECODE, StepResult(plan.seq + 7, last, last=True), 3.0)
    assert s.kv.pool.counts().quarantined == held and outputs(s)[0].finish_reason == "stop"
    s.book(Phase.DECODE, StepResult(next_one.seq, [TokenResult(2, 8)], last=False), 3.0)
    assert s.kv.pool.counts().quarantined == 0


def test_an_abort_frees_nothing_before_both_plans_are_over() -> None:
    s = ahead()
    plan = running(s, 40, 40)
    next_one = behind(s)
    held = s.abort(1)
    assert s.take_recall() == next_one.seq
    for made in (plan, next_one):
        for step in range(8):
            assert s.kv.pool.counts().quarantined == held
            done(s, made, step=step)
    assert s.kv.pool.counts().quarantined == 0


def test_it_waits_for_what_only_the_next_plan_can_know() -> None:
    s = ahead()
    assert s.plan_behind() is None, "of no plan"
    running(s, 40)
    add(s, 2, 3)
    done(s, prefill(s))
    assert s.plan_behind() is None, "somebody joins"
    s = ahead(num_blocks=3)
    plan = running(s, 40)
    assert behind(s).max_steps == 1, "as far as there are blocks"
    for step in range(8):
        done(s, plan, step=step)
    assert s.plan_behind() is None, "no block is left"
    s = ahead()
    running(s, 9)
    assert s.plan_behind() is None, "all end with this one"
    s = scheduler()
    running(s, 40)
    assert s.plan_behind() is None, "nobody asked for it"


def test_no_row_has_blocks_ahead_before_all_have_their_next_step() -> None:
    """Of two blocks that are left the older row would take both, for eight steps, and the newer one be preempted."""
    s = ahead(num_blocks=8)
    for number, prompt in ((1, 3), (2, 4)):
        add(s, number, prompt, max_tokens=40)
        done(s, prefill(s), token=11)
    plan = decode(s)
    next_one = behind(s)
    assert (next_one.max_steps, [len(row.block_table) for row in next_one.rows]) == (1, [3, 4])
    for step in range(8):
        done(s, plan, step=step)
    done(s, next_one)
    assert [row.request for row in decode(s).rows] == [1, 2] and s.preemptions == 0


def test_a_plan_whose_number_comes_again_with_another_resident_is_recalled_again() -> None:
    """A split that is moved before and after a resident's death, each time under decode's first plan."""
    s, page, rung = scheduler(), PacingPage.create(), Rung(index=0)
    holder = cast(Holder, SimpleNamespace(pid=1, send=lambda plan: None))
    router = cast(Router, SimpleNamespace(next=lambda phase, alone: Route(holder, rung)))
    dispatcher = Dispatcher(router, StepLog(None), Observer())
    add(s, 1, 3, max_tokens=40)
    for _ in range(2):
        page.recall(0)
        dispatcher.dispatch(s, page, Split(), 1.0)
        done(s, s.in_flight[Phase.PREFILL])
        dispatcher.dispatch(s, page, Split(), 2.0)
        assert s.in_flight[Phase.DECODE].seq == 1 and not page.recalled(1)
        rung = Rung(index=rung.index + 1)
        dispatcher.dispatch(s, page, Split(), 3.0)
        assert page.recalled(1)
        s.replace_kv(KVCacheManager(BlockPool(100), 4))


def test_what_is_sent_does_not_grow_with_the_context() -> None:
    """64 rows of 8,192 positions: their tables, which the worker has, are 512 blocks each."""
    s = ahead()
    plan = running(s, 40)
    row = msgspec.structs.replace(plan.rows[0], block_table=list(range(512)))
    wide = StepPlan(1, 8, [msgspec.structs.replace(row, request=i) for i in range(64)])
    longer = [msgspec.structs.replace(each, block_table=[*each.block_table, 7]) for each in wide.rows]
    sent = encode(continuation(wide, StepPlan(9, 8, longer)))
    assert len(sent) < 500 < 64 * 512 < len(encode(wide))
