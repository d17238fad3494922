"""Builds the plans' rows from request state, and answers who takes part in a plan."""

from __future__ import annotations

from semipd_engine.core.request import Request
from semipd_engine.ipc.messages import DecodePlan, DecodeRow, PrefillChunk, PrefillPlan

Plan = PrefillPlan | DecodePlan


def steps_of(plan: Plan) -> int:
    return plan.max_steps if isinstance(plan, DecodePlan) else 1


def requests_of(plan: Plan | None) -> set[int]:
    if plan is None:
        return set()
    parts: list[PrefillChunk] | list[DecodeRow] = plan.chunks if isinstance(plan, PrefillPlan) else plan.rows
    return {part.request for part in parts}


def chunk(request: Request, count: int) -> PrefillChunk:
    """The next `count` tokens of a prompt; the last chunk samples."""
    start = request.num_computed_tokens
    last = start + count == request.prefill_target
    return PrefillChunk(
        request=request.id,
        token_ids=request.token_ids[start : start + count],
        start=start,
        block_table=list(request.blocks.table),
        sampling=request.sampling if last else None,
        output_index=request.num_output_tokens,
        history=request.history if last else [],
        prompt_len=request.prompt_len if last else 0,
    )


def row(request: Request) -> DecodeRow:
    """Continue from the last token, whose K/V is not computed yet."""
    return DecodeRow(
        request=request.id,
        token=request.token_ids[-1],
        position=len(request.token_ids) - 1,
        block_table=list(request.blocks.table),
        sampling=request.sampling,
        output_index=request.num_output_tokens,
        history=request.history,
        prompt_len=request.prompt_len,
    )
