"""Golden plans of the scheduler: chunks, joins, recalls, preemption, isolation, on a time that is told."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Sequence

import pytest

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.fault_isolation import GIVE_UP_AFTER, ISOLATE_AFTER, LONE_CRASHES, Ending
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.plans import requests_of
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.ipc.messages import (
    RequestOutput,
    Sampling,
    StepFailed,
    StepPlan,
    StepResult,
    TargetScores,
    TokenLogprobs,
    TokenResult,
    unpack_logprobs,
)

pytestmark = pytest.mark.unit


def scheduler(num_blocks: int = 100, block_size: int = 4, chunk: int = 8, max_num_seqs: int = 8) -> Scheduler:
    limits = SchedulerLimits(max_model_len=64, max_num_seqs=max_num_seqs, prefill_chunk_tokens=chunk)
    return Scheduler(limits, KVCacheManager(BlockPool(num_blocks), block_size))


def add(s: Scheduler, number: int, prompt_len: int, max_tokens: int = 20, stop: tuple[int, ...] = ()) -> Request:
    prompt = [number * 100 + position for position in range(prompt_len)]
    sampling = Sampling(temperature=0, max_tokens=max_tokens, stop_token_ids=stop)
    request = Request(number, f"r{number}", prompt, sampling, received_at=1.0)
    s.add(request)
    return request


def prefill(s: Scheduler, now: float = 2.0) -> StepPlan:
    plan = s.plan_prefill(now)
    assert plan is not None
    return plan


def decode(s: Scheduler) -> StepPlan:
    plan = s.plan_decode()
    assert plan is not None
    return plan


def done(s: Scheduler, plan: StepPlan, token: int = 7, step: int = 0, now: float = 3.0) -> None:
    """Report one step of a plan: `token` for everybody who samples."""
    tokens = [TokenResult(row.request, token) for row in plan.rows if row.outputs == "last"]
    queue = next(queue for queue, in_flight in s.in_flight.items() if in_flight is plan)
    s.book(queue, StepResult(plan.seq + step, tokens, last=step == plan.max_steps - 1), now)


def outputs(s: Scheduler) -> list[RequestOutput]:
    return [output for _, output in s.take_outputs()]


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
    done(s, decode(s), token=9)
    assert [(o.token_ids, o.finish_reason, o.first_token_at) for o in outputs(s)] == [
        ([9], "stop", None),
        ([9], "length", None),
    ]
    counts = s.kv.pool.counts()
    assert counts.used == 0 and counts.quarantined == 0  # at its last step, not at the plan's end


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


class Grammar:
    """A `Constraint` whose masks come when the test says so."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.answer: bytes | None = None
        self.closed = 0

    def mask(self, output: Sequence[int]) -> bytes | None:
        self.asked.append(list(output))
        return self.answer

    def close(self) -> None:
        self.closed += 1


def test_a_masked_row_has_one_step_and_sits_a_step_out_while_its_mask_is_late() -> None:
    s = scheduler(chunk=4)
    masked, free = add(s, 1, 6), add(s, 2, 6)
    masked.constraint = grammar = Grammar()
    done(s, prefill(s))  # in the middle of its prompt it samples nothing and needs no mask
    assert grammar.asked == []
    late = prefill(s)
    assert [row.request for row in late.rows] == [2] and grammar.asked == [[]]
    done(s, late)
    grammar.answer = b"\x01"
    plan = prefill(s)
    assert [(row.request, row.mask) for row in plan.rows] == [(1, b"\x01"), (2, None)]
    done(s, plan, token=9)
    plan = decode(s)
    assert (plan.max_steps, [row.mask for row in plan.rows]) == (1, [b"\x01", None])
    assert grammar.asked[-1] == [9]
    done(s, plan)
    grammar.answer = None
    assert [row.request for row in decode(s).rows] == [free.id]


@pytest.mark.parametrize("end", ["abort", "finish", "fail"])
def test_a_constraint_is_closed_with_its_request(end: str) -> None:
    s = scheduler(chunk=64)
    request = add(s, 1, 6)
    request.constraint = grammar = Grammar()
    if end == "abort":
        s.abort(1)
    elif end == "finish":
        grammar.answer = b"\xff"
        s.plan_decode()
        done(s, prefill(s))
        while s.table.by_id:
            assert not grammar.closed
            done(s, decode(s))
    else:
        s.table.fail(request, "it cannot be")
    assert grammar.closed == 1


def test_a_prompt_whose_tokens_are_scored_is_computed_whole() -> None:
    """Chunk by chunk, past the prefix cache, and after a preemption from its beginning."""
    s = scheduler(chunk=8)
    add(s, 1, 8, max_tokens=1)
    done(s, prefill(s))
    request = Request(2, "r2", [100 + position for position in range(11)], Sampling(prompt_logprobs=3), received_at=1.0)
    s.add(request)

    def report(plan: StepPlan) -> None:
        (row,) = plan.rows
        scores = [TargetScores(2, [TokenLogprobs(-target) for target in row.targets])] if row.targets else []
        tokens = [TokenResult(2, 5)] if row.sampling is not None else []
        s.book(Phase.PREFILL, StepResult(plan.seq, tokens, last=True, scores=scores), 3.0)

    for begun in (True, False):
        plan = prefill(s)
        (row,) = plan.rows
        assert (row.start, len(row.tokens), row.outputs, row.sampling) == (0, 8, "all", None)
        assert (row.targets, row.target_logprobs) == (list(range(101, 109)), 3)
        report(plan)
        if begun:
            s.table.requeue(request)
    plan = prefill(s)
    (row,) = plan.rows
    assert (row.start, row.outputs, row.targets) == (8, "all", [109, 110]) and row.sampling is not None
    report(plan)
    (output,) = [output for owner, output in s.take_outputs() if owner is request]
    assert [each.logprob for each in unpack_logprobs(output.prompt_logprobs)] == [-target for target in range(101, 111)]
    s.table.requeue(request)
    assert {row.outputs for row in prefill(s).rows} == {"last"}, "what is known is not asked for again"


def test_slots_are_reused_under_a_new_assignment_number() -> None:
    s = scheduler(chunk=64)
    for number in (1, 2):
        add(s, number, 3)
    plan = prefill(s)
    assert [(row.slot, row.assignment) for row in plan.rows] == [(0, 1), (1, 2)]
    done(s, plan)
    s.abort(1)
    add(s, 3, 3)
    assert [(row.slot, row.assignment) for row in prefill(s).rows] == [(0, 3)]
    assert [(row.slot, row.assignment) for row in decode(s).rows] == [(1, 2)]


def test_a_stale_plan_is_made_again_and_nobody_is_blamed() -> None:
    s = scheduler()
    request = add(s, 1, 3)
    stale = prefill(s)
    s.plan_stale(Phase.PREFILL)
    again = prefill(s)
    assert again.rows == stale.rows and again.seq > stale.seq and request.failures == 0


def test_a_full_prefix_hit_leaves_one_block_to_compute() -> None:
    s = scheduler()
    for number in (1, 2):
        request = Request(number, str(number), list(range(8)), Sampling(max_tokens=1), received_at=0.0)
        s.add(request)
        plan = prefill(s)
        done(s, plan)
    assert (plan.rows[0].start, len(plan.rows[0].tokens), request.cached_tokens) == (4, 4, 4)


def test_a_prefix_is_found_only_after_its_step_was_reported() -> None:
    s = scheduler(chunk=64)
    same = list(range(9))
    s.add(Request(1, "1", same, Sampling(max_tokens=5), received_at=0.0))
    plan = prefill(s)
    extra = Request(2, "2", same, Sampling(max_tokens=5), received_at=0.0)
    s.add(extra)
    assert s.kv.pool.find(b"") is None and s.kv.hits_tokens == 0
    done(s, plan)
    assert prefill(s).rows[0].start == 8
    assert extra.cached_tokens == 8


def test_requests_that_can_never_run_are_refused() -> None:
    s = scheduler(num_blocks=4)
    add(s, 1, 64)
    add(s, 2, 0)
    add(s, 3, 20)  # five blocks
    assert s.plan_prefill(2.0) is None
    errors = [o.error or "" for o in outputs(s)]
    assert "max_model_len" in errors[0] and "empty" in errors[1] and "--kv-cache-memory" in errors[2]
    assert s.table.by_id == {}


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
