"""Lost workers, failed and stale plans, a lost pool: who is to blame, who goes on, and that nobody is lost."""

from __future__ import annotations

import itertools
import signal

import pytest
from tests.unit.scheduler_bench import add, decode, done, outputs, prefill, scheduler

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.fault_isolation import GIVE_UP_AFTER, ISOLATE_AFTER, LONE_CRASHES, Ending
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plans import requests_of
from semipd_engine.core.request import RequestState
from semipd_engine.ipc.steps import StepFailed

pytestmark = pytest.mark.unit


def test_a_stale_plan_is_made_again_and_nobody_is_blamed() -> None:
    s = scheduler()
    request = add(s, 1, 3)
    stale = prefill(s)
    s.plan_stale(Phase.PREFILL, s.in_flight[Phase.PREFILL].seq)
    again = prefill(s)
    assert again.rows == stale.rows and again.seq > stale.seq and request.failures == 0


def test_a_lost_worker_repeats_and_loses_nothing() -> None:
    s = scheduler()
    add(s, 1, 3)
    lost = prefill(s)
    s.worker_lost(Phase.PREFILL)
    again = prefill(s)
    assert again.rows == lost.rows and again.seq == lost.seq + 1
    done(s, again, token=11)
    plan = decode(s)
    done(s, plan, token=12, step=0)
    s.worker_lost(Phase.DECODE)
    row = decode(s).rows[0]
    assert (row.tokens, row.start, row.output_index) == ([12], 4, 2)


def test_a_poisonous_request_is_isolated_and_given_up() -> None:
    s = scheduler(chunk=64)
    add(s, 1, 3)
    add(s, 2, 3)
    alone = 0
    for _ in range(3 * GIVE_UP_AFTER):
        plan = s.plan_prefill(2.0)
        if plan is None:
            break
        if any(c.request == 1 for c in plan.rows):
            alone += len(plan.rows) == 1
            s.worker_lost(Phase.PREFILL)
        else:
            done(s, plan)
    assert alone > 0
    assert {r.id: r.state for r in s.table.by_id.values()} == {2: RequestState.DECODING}
    assert "died" in next(o.error for o in outputs(s) if o.error)


def test_a_request_that_crashes_its_worker_is_isolated_at_once_and_tried_once_more() -> None:
    s = scheduler(chunk=64)
    for number in (1, 2, 3):
        add(s, number, 3)
    runs: list[list[int]] = []
    while (plan := s.plan_prefill(2.0)) is not None:
        runs.append([c.request for c in plan.rows])
        if 2 in runs[-1]:
            s.worker_lost(Phase.PREFILL, Ending(-signal.SIGSEGV))
        else:
            done(s, plan)
    assert runs[0] == [1, 2, 3] and all(len(run) == 1 for run in runs[1:])
    assert runs[1:].count([2]) == LONE_CRASHES
    (error,) = [o for o in outputs(s) if o.error]
    assert (error.key, error.error_code) == ("r2", "worker_crashed") and "(SIGSEGV)" in (error.error or "")
    assert [row.request for row in decode(s).rows] == [1, 3], "who got further is no suspect any more"


def test_thirty_kills_without_any_progress_cost_a_lone_request_nothing() -> None:
    s = scheduler()
    add(s, 1, 3, max_tokens=2)
    for _ in range(30):
        prefill(s)
        s.worker_lost(Phase.PREFILL, Ending(-signal.SIGKILL))
    done(s, prefill(s), token=11)
    for _ in range(30):
        decode(s)
        s.worker_lost(Phase.DECODE, Ending(-signal.SIGTERM))
    done(s, decode(s), token=12)
    told = outputs(s)
    assert [o.token_ids for o in told] == [[11], [12]] and told[-1].finish_reason == "length"


@pytest.mark.parametrize("phase", list(Phase))
def test_a_suspect_and_the_others_take_turns(phase: Phase) -> None:
    """The worker of request 1 is killed each time, e.g. because it takes too much memory; the others go on."""
    s = scheduler(chunk=64)
    turns: list[list[int]] = []
    for number in range(1, 10):
        add(s, number, 3, max_tokens=2)
        for _ in range(2):
            for now, plan in ((Phase.PREFILL, s.plan_prefill(2.0)), (Phase.DECODE, s.plan_decode())):
                if plan is None:
                    continue
                ids = sorted(requests_of(plan))
                turns += [ids] if now is phase else []
                if now is phase and 1 in ids:
                    s.worker_lost(phase)
                else:
                    done(s, plan)
    isolated = turns.index([1]) + ISOLATE_AFTER
    assert all((1 in before) != (1 in after) for before, after in itertools.pairwise(turns[isolated:]))
    assert len(turns) > isolated + 4 and all(ids == [1] or 1 not in ids for ids in turns[isolated:])
    assert not [o for o in outputs(s) if o.error] and s.table.by_id[1].failures > ISOLATE_AFTER


@pytest.mark.parametrize(
    ("status", "own_doing", "words"),
    [
        (-signal.SIGSEGV, True, "SIGSEGV"),
        (-signal.SIGABRT, True, "SIGABRT"),
        (1, True, "exit status 1"),
        (0, False, "exit status 0"),
        (-signal.SIGKILL, False, "SIGKILL"),
        (-signal.SIGTERM, False, "SIGTERM"),
        (-35, False, "signal 35"),
        (None, False, "unknown"),
    ],
)
def test_whose_doing_a_workers_end_is(status: int | None, own_doing: bool, words: str) -> None:
    assert (Ending(status).own_doing, str(Ending(status))) == (own_doing, words)


def test_a_failed_plan_finds_its_culprit() -> None:
    s = scheduler(chunk=64)
    for number in (1, 2, 3):
        add(s, number, 3)
    plan = prefill(s)
    s.plan_failed(Phase.PREFILL, StepFailed(plan.seq, "ValueError: no", request=None))
    while (plan := s.plan_prefill(2.0)) is not None:  # one by one
        assert len(plan.rows) == 1
        if plan.rows[0].request == 2:
            s.plan_failed(Phase.PREFILL, StepFailed(plan.seq, "ValueError: no", request=None))
        else:
            done(s, plan)
    assert [(o.key, o.error) for o in outputs(s) if o.error] == [("r2", "the step failed: ValueError: no")]
    assert len(decode(s).rows) == 2


def test_a_new_pool_computes_everything_again() -> None:
    s = scheduler()
    running, queued = add(s, 1, 6), add(s, 2, 3)
    done(s, prefill(s), token=11)
    decode(s)
    s.replace_kv(KVCacheManager(BlockPool(50), 4))
    assert s.in_flight == {} and [r.id for r in s.table.waiting] == [1, 2]
    plan = prefill(s)
    assert plan.seq == 1
    assert plan.rows[0].tokens == running.token_ids and running.token_ids[-1] == 11
    assert queued.num_output_tokens == 0 or plan.rows[-1].request == 2
