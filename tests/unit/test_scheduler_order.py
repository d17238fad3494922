"""Whose prompt is computed next: turns by arrival, priority and wished time to the first token, and that they age."""

from __future__ import annotations

import pytest

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.wishes import Wishes
from semipd_engine.ipc.steps import StepResult, TokenResult
from semipd_engine.ipc.tokens import Sampling

pytestmark = pytest.mark.unit
CHUNK = 8


class Bench:
    """A scheduler whose prefill steps take a second each; outputs have one token."""

    def __init__(self, max_num_seqs: int = 8, num_blocks: int = 100, aggregated: bool = False) -> None:
        limits = SchedulerLimits(max_model_len=200, max_num_seqs=max_num_seqs, prefill_chunk_tokens=CHUNK)
        kv = KVCacheManager(BlockPool(num_blocks), 4, prefix_caching=False)
        self.scheduler = Scheduler(limits, kv, aggregated)
        self.queue = Phase.DECODE if aggregated else Phase.PREFILL
        self.now = 0.0
        self.count = 0
        self.done: list[int] = []
        self.received: dict[int, float] = {}

    def add(
        self,
        tokens: int = CHUNK,
        priority: int = 0,
        ttft: float | None = None,
        at: float | None = None,
        output: int = 1,
    ) -> int:
        self.count += 1
        received = self.received[self.count] = self.now if at is None else at
        wait = Wishes().patience(priority, ttft)
        sampling = Sampling(max_tokens=output)
        self.scheduler.add(Request(self.count, "", [1] * tokens, sampling, received_at=received, patience=wait))
        return self.count

    def step(self) -> list[int]:
        """Requests in the next plan, which is completed."""
        plan = self.scheduler.plan(self.queue, self.now)
        if plan is None:
            return []
        self.now += 1.0
        tokens = [TokenResult(row.request, 7) for row in plan.rows if row.outputs == "last"]
        self.scheduler.book(self.queue, StepResult(plan.seq, tokens, last=True), self.now)
        self.done += [request.id for request, output in self.scheduler.take_outputs() if output.finish_reason]
        return [row.request for row in plan.rows]

    def run(self) -> list[int]:
        while self.step():
            pass
        return self.done


def test_without_a_word_first_come_is_first_served() -> None:
    bench = Bench()
    assert [bench.add(at=at) for at in (0.0, 0.0, 0.1)] == [1, 2, 3]
    assert bench.run() == [1, 2, 3]


def test_priority_and_wishes_move_a_prompt() -> None:
    bench = Bench()
    bench.add()
    patient, hurried = bench.add(ttft=20.0), bench.add(ttft=0.2)
    last, first = bench.add(priority=3), bench.add(priority=-1)
    assert bench.run() == [first, hurried, 1, patient, last]


def test_wishes_are_bounded_by_what_the_service_promises_and_counted_when_ignored() -> None:
    wishes = Wishes()
    assert wishes.patience(ttft=0.25) == pytest.approx(-0.75)
    wishes.promise(ttft=2.0, tpot=0.1)
    assert wishes.patience() == wishes.patience(ttft=0.25) == wishes.patience(ttft=2.0) == 0.0
    assert wishes.patience(ttft=5.0) == pytest.approx(3.0)
    assert wishes.patience(priority=-1, ttft=0.25) == -10.0
    assert (wishes.gap(0.05, True), wishes.gap(0.2, True), wishes.gap(None, True)) == (0.1, 0.2, None)
    assert wishes.ignored == {"ttft": 2, "tpot": 1}
    assert wishes.gap(0.2, False) == 0.2 and wishes.ignored["tpot"] == 1, "the promise serves it"
    wishes.promise(ttft=40.0, tpot=None)
    assert wishes.patience(ttft=35.0) == 0.0 and wishes.ignored["ttft"] == 3
    assert (wishes.gap(0.01, True), wishes.ignored["tpot"]) == (0.01, 1)
    assert (wishes.gap(0.01, False), wishes.ignored["tpot"]) == (0.01, 2), "there is nothing to cut"


@pytest.mark.parametrize("aggregated", [False, True])
def test_an_urgent_prompt_does_not_wait_for_the_end_of_a_long_one(aggregated: bool) -> None:
    bench = Bench(aggregated=aggregated)
    long = bench.add(tokens=5 * CHUNK)
    assert bench.step() == [long]
    urgent = bench.add(priority=-1)
    assert bench.step() == [urgent], "at the next step boundary"
    assert bench.step() == [long]
    late = bench.add()
    assert [bench.step() for _ in range(4)] == [[long], [long], [long], [late]]


def test_nobody_is_overtaken_for_ever() -> None:
    """Urgent prompts come as fast as they are served. What overtakes the most patient one has come within the 150 s
    that are stated."""
    bench = Bench(max_num_seqs=2)
    bench.add()
    weakest = bench.add(priority=99, ttft=999.0)
    while weakest not in bench.done and bench.now < 200:
        bench.add(priority=-99, ttft=0.001)
        bench.step()
    before = [bench.received[id] for id in bench.done if id != weakest]
    assert weakest in bench.done and 140 < max(before) < 150


def test_how_long_whoever_suffers_most_has_been_left_alone_is_known() -> None:
    bench = Bench()
    table = bench.scheduler.table
    assert table.silence(5.0) == (0.0, 0.0)
    bench.add(output=2)
    bench.step()
    bench.add(tokens=2 * CHUNK, at=0.5)
    bench.add(at=0.75)
    assert table.silence(3.0) == (2.5, 2.0), "of the first that waits; of the stream whose token came at 1"
    bench.step()
    assert table.silence(3.0) == (2.5, 2.0), "a chunk is no token"
    bench.step()
    assert table.silence(4.0) == (3.25, 3.0)


def test_a_preempted_request_returns_to_its_place() -> None:
    bench = Bench()
    first = bench.add(tokens=3 * CHUNK)
    bench.step()
    bench.add()
    request = bench.scheduler.table.by_id[first]
    bench.scheduler.table.requeue(request)
    assert request.state is RequestState.WAITING
    assert bench.run() == [first, 2]


def test_one_whose_blocks_are_not_there_is_passed_by_nobody() -> None:
    """A smaller prompt behind it would take them again and again."""
    bench = Bench(num_blocks=9)
    running, large = bench.add(tokens=24), bench.add(tokens=24)
    small = bench.add(tokens=4)
    assert bench.step() == [running]
    assert bench.step() == [running]
    assert bench.run() == [running, large, small]
