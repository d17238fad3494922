"""What a plan's rows carry: masks, scored prompts, slots, cached prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.unit.scheduler_bench import add, decode, done, prefill, scheduler

from semipd_engine.contract import Phase
from semipd_engine.core.request import Request
from semipd_engine.ipc.steps import StepPlan, StepResult, TargetScores, TokenResult
from semipd_engine.ipc.tokens import Sampling, TokenLogprobs, unpack_logprobs

pytestmark = pytest.mark.unit


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
