"""A scheduler, requests for it, and reports of steps that a test makes up."""

from __future__ import annotations

from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.request import Request
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.ipc.requests import RequestOutput
from semipd_engine.ipc.steps import StepPlan, StepResult, TokenResult
from semipd_engine.ipc.tokens import Sampling


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
