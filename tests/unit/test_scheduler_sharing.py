"""How requests share steps and blocks: one process for both phases, preemption by age, equal prompts."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.fault_isolation import ISOLATE_AFTER
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.plans import tokens_of
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.ipc.steps import StepPlan, StepResult, TokenResult
from semipd_engine.ipc.tokens import Sampling

pytestmark = pytest.mark.unit


def scheduler(num_blocks: int = 100, chunk: int = 8, max_num_seqs: int = 8, aggregated: bool = False) -> Scheduler:
    limits = SchedulerLimits(max_model_len=64, max_num_seqs=max_num_seqs, prefill_chunk_tokens=chunk)
    return Scheduler(limits, KVCacheManager(BlockPool(num_blocks), block_size=4), aggregated)


def add(s: Scheduler, number: int, prompt: list[int] | int, max_tokens: int = 40) -> Request:
    tokens = prompt if isinstance(prompt, list) else [number * 100 + position for position in range(prompt)]
    request = Request(number, f"r{number}", tokens, Sampling(temperature=0, max_tokens=max_tokens), received_at=1.0)
    s.add(request)
    return request


def plan(s: Scheduler, queue: Phase) -> StepPlan:
    found = s.plan(queue, 2.0)
    assert found is not None
    return found


def report(s: Scheduler, queue: Phase, step: int = 0, last: bool | None = None) -> None:
    """One step of the queue's plan is over: 7 for everybody who samples."""
    made = s.in_flight[queue]
    tokens = [TokenResult(row.request, 7) for row in made.rows if row.outputs == "last"]
    s.book(queue, StepResult(made.seq + step, tokens, step == made.max_steps - 1 if last is None else last), 3.0)


def run(s: Scheduler, queue: Phase) -> StepPlan | None:
    """The queue's next plan, with all of its steps."""
    made = s.plan(queue, 2.0)
    for step in range(made.max_steps if made is not None else 0):
        report(s, queue, step)
    return made


def rows(made: StepPlan) -> list[tuple[int, int]]:
    return [(row.request, len(row.tokens)) for row in made.rows]


# ---- one process -----------------------------------------------------------------------------------------------------


def test_in_one_process_rows_and_chunks_share_a_step_within_one_budget() -> None:
    s = scheduler(chunk=8, aggregated=True)
    add(s, 1, 5)
    assert s.plan(Phase.PREFILL, 2.0) is None  # everything goes through decode's queue
    assert rows(plan(s, Phase.DECODE)) == [(1, 5)]
    report(s, Phase.DECODE)
    add(s, 2, 20)
    mixed = plan(s, Phase.DECODE)
    assert rows(mixed) == [(1, 1), (2, 7)] and tokens_of(mixed) == 8 and mixed.max_steps == 1
    report(s, Phase.DECODE)
    assert rows(plan(s, Phase.DECODE)) == [(1, 1), (2, 7)]
    report(s, Phase.DECODE)
    assert rows(plan(s, Phase.DECODE)) == [(1, 1), (2, 6)]
    report(s, Phase.DECODE)
    last = plan(s, Phase.DECODE)
    assert rows(last) == [(1, 1), (2, 1)] and last.max_steps == 8  # nobody waits: steps ahead again


def test_in_one_process_a_new_prompt_is_seen_at_the_next_step_boundary() -> None:
    s = scheduler(aggregated=True)
    add(s, 1, 5)
    run(s, Phase.DECODE)
    running = plan(s, Phase.DECODE)
    assert running.max_steps == 8 and s.take_recall() is None
    add(s, 2, 5)
    assert s.take_recall() == running.seq
    report(s, Phase.DECODE, last=True)
    assert rows(plan(s, Phase.DECODE)) == [(1, 1), (2, 5)]


def test_many_rows_do_not_starve_prompts() -> None:
    s = scheduler(chunk=6, aggregated=True)
    for number in range(1, 7):
        add(s, number, 1)
    run(s, Phase.DECODE)
    add(s, 9, 12)
    assert rows(plan(s, Phase.DECODE))[-1] == (9, 4)  # a block of tokens at least


def test_the_mode_has_a_budget_of_its_own_and_gives_it_back() -> None:
    s = scheduler(chunk=8)
    add(s, 1, 40)
    for on, tokens, most in ((True, 4, 4), (True, 6, 6), (True, 0, 8), (True, 99, 8), (False, 4, 8)):
        s.aggregate(on, tokens)
        queue = Phase.DECODE if on else Phase.PREFILL
        assert rows(plan(s, queue)) == [(1, most)]
        report(s, queue)


def test_the_mode_may_change_while_plans_are_in_flight() -> None:
    s = scheduler(chunk=8)
    add(s, 1, 20)
    plan(s, Phase.PREFILL)
    s.aggregate(True)
    assert s.plan(Phase.DECODE, 2.0) is None  # the prompt is in prefill's plan
    report(s, Phase.PREFILL)
    assert rows(plan(s, Phase.DECODE)) == [(1, 8)]
    s.aggregate(False)
    assert s.plan(Phase.PREFILL, 2.0) is None
    report(s, Phase.DECODE)
    assert rows(plan(s, Phase.PREFILL)) == [(1, 4)]


# ---- preemption ------------------------------------------------------------------------------------------------------


def test_a_newer_prompt_in_flight_never_makes_an_older_stream_give_its_blocks_back() -> None:
    s = scheduler(num_blocks=8, chunk=4)
    old = add(s, 1, 7)
    while old.state is not RequestState.DECODING:
        run(s, Phase.PREFILL)
    new = add(s, 2, 17)  # five blocks of eight
    plan(s, Phase.PREFILL)
    while run(s, Phase.DECODE):  # the stream takes what is left, step by step
        pass
    assert (old.state, old.preemptions) == (RequestState.DECODING, 0)  # it sits out, for one chunk at most
    assert s.kv.pool.available == 0
    report(s, Phase.PREFILL)
    assert s.plan(Phase.PREFILL, 2.0) is None  # no further chunk before the newer one has paid
    assert rows(plan(s, Phase.DECODE)) == [(1, 1)]
    assert (new.state, new.preemptions, old.preemptions) == (RequestState.WAITING, 1, 0)


def test_a_row_that_waits_for_a_newer_prompts_step_joins_the_others_right_after_it() -> None:
    s = scheduler(num_blocks=11, chunk=32, max_num_seqs=3)
    for number, length in ((1, 3), (2, 6)):  # they do not need their next block at the same time
        add(s, number, length)
    run(s, Phase.PREFILL)
    add(s, 3, 21)
    plan(s, Phase.PREFILL)
    while len((made := plan(s, Phase.DECODE)).rows) == 2:
        for step in range(made.max_steps):
            report(s, Phase.DECODE, step)
    assert s.take_recall() is None
    report(s, Phase.PREFILL)
    assert s.take_recall() == made.seq
    report(s, Phase.DECODE, last=True)
    assert [row.request for row in plan(s, Phase.DECODE).rows] == [1, 2]
    assert s.table.by_id[3].preemptions == 1


def test_under_back_to_back_prompts_and_a_full_pool_the_oldest_stream_keeps_its_share() -> None:
    """In ticks of one chunk each the oldest stream sits out only those in which a newer one's step is awaited."""
    preemptions = 0
    for seed in range(20):
        s, generator = scheduler(num_blocks=24, chunk=8, max_num_seqs=6), random.Random(seed)
        oldest = add(s, 0, 6, max_tokens=58)
        number, ticks = 0, 0
        while oldest.state is not RequestState.FINISHED:
            while len(s.table.by_id) < 6:
                number += 1
                add(s, number, generator.randrange(8, 40), max_tokens=20)
            ticks += 1
            for queue in (Phase.DECODE, Phase.PREFILL):
                s.plan(queue, float(ticks))
            for queue in tuple(s.in_flight):
                report(s, queue, last=True)
        assert oldest.preemptions == 0
        assert ticks <= 1.1 * oldest.num_output_tokens
        preemptions += s.preemptions
    assert preemptions > 20


# ---- equal prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregated", [False, True])
def test_four_copies_of_a_prompt_compute_it_once(aggregated: bool) -> None:
    s, prompt = scheduler(chunk=64, aggregated=aggregated), list(range(61))
    for number in range(4):
        add(s, number, prompt, max_tokens=2)
    computed: Counter[int] = Counter()
    while s.table.by_id:
        for queue in (Phase.DECODE, Phase.PREFILL):
            made = run(s, queue)
            if made is not None:
                computed.update({row.request: len(row.tokens) for row in made.rows if row.output_index == 0})
    assert [computed[number] for number in range(4)] == [61, 1, 1, 1]


def test_a_prompt_that_waits_for_anothers_blocks_lets_those_behind_it_pass() -> None:
    s = scheduler(chunk=9)
    for number in (1, 2):
        add(s, number, list(range(24)))
    add(s, 3, 3)
    for _ in range(2):
        assert rows(plan(s, Phase.PREFILL)) == [(1, 9)]
        report(s, Phase.PREFILL)
    assert rows(plan(s, Phase.PREFILL)) == [(1, 6), (3, 3)]
    report(s, Phase.PREFILL)
    assert rows(plan(s, Phase.PREFILL)) == [(2, 4)]


def test_nobody_waits_for_the_blocks_of_a_suspect() -> None:
    s = scheduler(chunk=9)
    for number in (1, 2):
        add(s, number, list(range(24)))
    for _ in range(2):
        run(s, Phase.PREFILL)
    for _ in range(ISOLATE_AFTER + 1):
        assert rows(plan(s, Phase.PREFILL)) == [(1, 6)]
        s.worker_lost(Phase.PREFILL)  # somebody kills it, again and again
    assert rows(plan(s, Phase.PREFILL)) == [(2, 8)]
