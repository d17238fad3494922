"""Builds a plan's rows from request state, and answers who takes part in a plan."""

from __future__ import annotations

import msgspec

from semipd_engine.core.observation import StepSize
from semipd_engine.core.request import Request
from semipd_engine.ipc.steps import Continuation, Row, StepPlan

UNKNOWN = -1
"""In place of a token: what the plan before samples last, which its worker alone knows yet."""


def requests_of(plan: StepPlan | None) -> set[int]:
    return {row.request for row in plan.rows} if plan is not None else set()


def tokens_of(plan: StepPlan) -> int:
    """Tokens of the plan's first step."""
    return sum(len(row.tokens) for row in plan.rows)


def chunks_of(plan: StepPlan, step: int = 0) -> tuple[int, int]:
    """Of the plan's step (0: the first): tokens of chunks, and the middle of the one that is furthest. A chunk of one
    is a row as any."""
    chunks = [row for row in plan.rows if len(row.tokens) > 1] if step == 0 else []
    return sum(len(row.tokens) for row in chunks), max((row.start + len(row.tokens) // 2 for row in chunks), default=0)


def size_of(plan: StepPlan, step: int = 0) -> StepSize:
    """Of the plan's step (0: the first): rows that have not ended, their tokens, and the positions that they read."""
    rows = tokens = context = prompt_tokens = prompt_context = 0
    for row in plan.rows:
        count, start = len(row.tokens), row.start
        if step > 0:
            if row.sampling is None or row.output_index + step >= row.sampling.max_tokens:
                continue
            count, start = 1, start + count + step - 1
        read = count * (start + (count + 1) // 2)
        rows += 1
        tokens += count
        context += read
        if count > 1 or row.output_index == 0:
            prompt_tokens += count
            prompt_context += read
    return StepSize(rows, tokens, context, prompt_tokens, prompt_context)


def row(request: Request, count: int, mask: bytes | None = None) -> Row:
    """The next `count` tokens that are not computed yet. The row that reaches the last known token samples the next."""
    start = request.num_computed_tokens
    samples = start + count == len(request.token_ids)
    last = min(start + count, len(request.prompt_token_ids) - 1)
    targets = request.prompt_token_ids[start + 1 : last + 1] if request.scores_prompt else []
    return Row(
        request=request.id,
        tokens=request.token_ids[start : start + count],
        start=start,
        block_table=list(request.blocks.table),
        slot=request.slot,
        assignment=request.assignment,
        outputs="all" if targets else "last" if samples else "none",
        sampling=request.sampling if samples else None,
        targets=targets,
        target_logprobs=request.sampling.prompt_logprobs if targets else 0,
        output_index=request.num_output_tokens,
        history=request.history if samples else [],
        prompt_len=request.prompt_len if samples else 0,
        mask=mask if samples else None,
    )


def row_behind(before: Row, steps: int, block_table: list[int]) -> Row:
    """The row of a decode row's request in the plan behind its own, of so many steps."""
    return msgspec.structs.replace(
        before,
        tokens=[UNKNOWN],
        start=before.start + steps,
        output_index=before.output_index + steps,
        block_table=list(block_table),
        history=[],
    )


def continuation(before: StepPlan, plan: StepPlan) -> Continuation:
    """`plan`, made behind `before` of rows that go on, as what is sent to the worker that runs `before`."""
    held = {row.request: len(row.block_table) for row in before.rows}
    return Continuation(plan.seq, plan.max_steps, [(r.request, r.block_table[held[r.request] :]) for r in plan.rows])
