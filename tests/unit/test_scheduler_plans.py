"""Golden plans of the scheduler: chunks, joins, recalls, preemption, admission, on a time that is told."""

from __future__ import annotations

import pytest
from tests.unit.scheduler_bench import add, decode, done, outputs, prefill, scheduler

from semipd_engine.contract import Phase
from semipd_engine.core.request import RequestState
from semipd_engine.ipc.steps import StepResult, TokenResult

pytestmark = pytest.mark.unit


def test_prompts_are_chunked_in_order_of_arrival() -> None:
    s = scheduler(chunk=8)
    add(s, 1, 13)
    add(s, 2, 5)
    first = prefill(s)
    assert [(c.request, c.start, len(c.tokens), c.sampling) for c in first.rows] == [(1, 0, 8, None)]
    assert len(first.rows[0].block_table) == 4  # the whole prompt's blocks are reserved
    assert s.plan_prefill(2.0) is None  # one plan in flight
    done(s, first)
    second = prefill(s)
    assert [(c.request, c.start, len(c.tokens)) for c in second.rows] == [(1, 8, 5), (2, 0, 3)]
    assert second.rows[0].sampling is not None and second.rows[1].sampling is None


def test_a_new_row_recalls_decode_and_joins_it() -> None:
    s = scheduler()
    add(s, 1, 3)
    done(s, prefill(s), token=11)
    plan = decode(s)
    assert (plan.seq, plan.max_steps) == (1, 8)
    assert (plan.rows[0].tokens, plan.rows[0].start, plan.rows[0].output_index) == ([11], 3, 1)
    assert len(plan.rows[0].block_table) == 3  # positions 3 .. 10: blocks for every step of the plan
    assert s.take_recall() is None
    add(s, 2, 3)
    done(s, prefill(s))
    assert s.take_recall() == plan.seq
    s.book(Phase.DECODE, StepResult(plan.seq, [TokenResult(1, 12)], last=True), 3.0)  # the worker obeys
    joined = decode(s)
    assert [row.request for row in joined.rows] == [1, 2]
    assert joined.seq == 9  # the recalled plan's other steps count as over


def test_tokens_stop_length_and_times() -> None:
    s = scheduler()
    add(s, 1, 3, stop=(9,))
    add(s, 2, 3, max_tokens=2)
    done(s, prefill(s, now=2.0), token=5, now=3.0)
    first = outputs(s)
    assert [(o.token_ids, o.first_token_at, o.scheduled_at) for o in first] == [([5], 3.0, 2.0)] * 2
    plan, blocks = decode(s), len(s.table.by_id[1].blocks.table)
    done(s, plan, token=9)
    assert [(o.token_ids, o.finish_reason, o.first_token_at) for o in outputs(s)] == [
        ([9], "stop", None),
        ([9], "length", None),
    ]
    counts = s.kv.pool.counts()  # not at the plan's end; who stops is in the step that has begun meanwhile
    assert (counts.used, counts.quarantined) == (0, blocks)
    done(s, plan, token=9, step=1)
    assert s.kv.pool.counts().quarantined == 0


def test_decode_plans_are_no_longer_than_the_longest_row() -> None:
    s = scheduler()
    add(s, 1, 3, max_tokens=4)
    done(s, prefill(s))
    assert decode(s).max_steps == 3


def test_abort_quarantines_until_the_plan_is_over() -> None:
    s = scheduler()
    add(s, 1, 3)
    done(s, prefill(s))
    plan = decode(s)
    s.abort(1)
    assert s.take_recall() == plan.seq
    assert s.kv.pool.counts().quarantined == 3
    assert outputs(s)[-1].finish_reason == "abort"
    s.book(Phase.DECODE, StepResult(plan.seq, [TokenResult(1, 8)], last=True), 3.0)
    assert s.kv.pool.counts().quarantined == 0 and outputs(s) == []


def test_the_newest_is_preempted_and_resumes_with_its_tokens() -> None:
    s = scheduler(num_blocks=5, chunk=32)
    add(s, 1, 7)
    add(s, 2, 6)
    done(s, prefill(s), token=5)
    plan = decode(s)  # one block is left for both
    assert [row.request for row in plan.rows] == [1, 2]
    while [row.request for row in plan.rows] == [1, 2]:
        for step in range(plan.max_steps):
            done(s, plan, token=20 + step, step=step)
        plan = decode(s)
    assert [row.request for row in plan.rows] == [1]
    victim = s.table.waiting[0]
    assert (victim.id, victim.preemptions, s.preemptions) == (2, 1, 1)
    s.abort(1)
    s.worker_lost(Phase.DECODE)
    resumed = prefill(s)
    assert resumed.rows[0].request == 2
    assert resumed.rows[0].start + len(resumed.rows[0].tokens) == len(victim.token_ids) > 6
    assert resumed.rows[0].output_index == victim.num_output_tokens >= 1


def test_requests_that_can_never_run_are_refused() -> None:
    s = scheduler(num_blocks=4)
    add(s, 1, 65)
    add(s, 2, 0)
    add(s, 3, 20)  # five blocks
    assert s.plan_prefill(2.0) is None
    errors = [o.error or "" for o in outputs(s)]
    assert "max_model_len" in errors[0] and "empty" in errors[1] and "--kv-cache-memory" in errors[2]
    assert s.table.by_id == {}


def test_a_prompt_of_the_whole_length_leads_to_one_token_in_its_own_blocks() -> None:
    s = scheduler(num_blocks=16, chunk=40)  # as many as 64 tokens need
    request = add(s, 1, 64, max_tokens=9)
    for count in (40, 24):
        plan = prefill(s)
        assert (len(plan.rows[0].tokens), len(plan.rows[0].block_table)) == (count, 16)
        done(s, plan)
    assert s.plan_decode() is None and outputs(s)[-1].finish_reason == "length"
    assert request.num_output_tokens == 1 and s.kv.pool.counts().used == 0


def test_the_last_request_that_outgrows_the_pool_gets_an_error() -> None:
    s = scheduler(num_blocks=2)
    request = add(s, 1, 7)
    done(s, prefill(s))
    done(s, decode(s))
    assert s.plan_decode() is None
    assert "--kv-cache-memory" in (outputs(s)[-1].error or "")
    assert request.state is RequestState.FINISHED and s.kv.pool.counts().used == 0


def test_admission_respects_max_num_seqs_and_leaves_a_block_to_each_runner() -> None:
    s = scheduler(num_blocks=6, chunk=64, max_num_seqs=2)
    add(s, 1, 8)
    add(s, 2, 12)
    add(s, 3, 1)
    assert [c.request for c in prefill(s).rows] == [1, 2] or s.table.num_running == 2
    s = scheduler(num_blocks=5, chunk=64)
    add(s, 1, 8)
    add(s, 2, 12)  # would take the last three blocks
    assert [c.request for c in prefill(s).rows] == [1]
