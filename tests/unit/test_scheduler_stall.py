"""Nobody starves where prompts share decode's steps: streams have a token within a bound, prompts a block a step."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

import pytest

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.fault_isolation import Ending, is_suspect
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.stall_bound import StallBound
from semipd_engine.ipc.steps import Row, StepPlan, StepResult, TokenResult
from semipd_engine.ipc.tokens import Sampling

pytestmark = pytest.mark.unit

BLOCK = 16


@dataclass(frozen=True)
class Device:
    """What a step costs, seconds."""

    rest: float = 0.04
    row: float = 0.0
    token: float = 0.0025
    position: float = 0.0
    """For a token at a position, beside `token`: attention."""

    def seconds(self, plan: StepPlan) -> float:
        return self.rest + sum(map(self._row, plan.rows))

    def _row(self, row: Row) -> float:
        count = len(row.tokens)
        return self.row + count * (self.token + self.position * (row.start + count / 2))


class Bench:
    """One process for both phases, on a device that takes the time it is said to take."""

    def __init__(self, device: Device, limits: SchedulerLimits, num_blocks: int = 2000) -> None:
        self.device, self.now, self.count = device, 0.0, 0
        self.scheduler = Scheduler(limits, KVCacheManager(BlockPool(num_blocks), BLOCK), aggregated=True)

    def add(self, prompt: list[int], max_tokens: int, gap_wish: float | None = None) -> Request:
        self.count += 1
        sampling = Sampling(max_tokens=max_tokens)
        request = Request(self.count, str(self.count), prompt, sampling, received_at=self.now, gap_wish=gap_wish)
        self.scheduler.add(request)
        return request

    def plan(self) -> StepPlan | None:
        return self.scheduler.plan(Phase.DECODE, self.now)

    def next(self) -> StepPlan:
        plan = self.plan()
        assert plan is not None
        return plan

    def stream(self, gap_wish: float | None = None, max_tokens: int = 100) -> Request:
        """One that has decoded by itself for a step."""
        request = self.add([1], max_tokens, gap_wish)
        while request.num_output_tokens < 2:
            self.run(self.next())
        return request

    def run(self, plan: StepPlan, noise: float = 1.0) -> float:
        """The plan's first step, after which it is recalled. Returns the seconds that it took."""
        seconds = self.device.seconds(plan) * noise
        self.now += seconds
        tokens = [TokenResult(row.request, 7) for row in plan.rows if row.sampling is not None]
        self.scheduler.book(Phase.DECODE, StepResult(plan.seq, tokens, last=True, seconds=seconds), self.now)
        self.scheduler.take_outputs()
        return seconds


def prompt_tokens(plan: StepPlan) -> int:
    return sum(len(row.tokens) for row in plan.rows if len(row.tokens) > 1)


# ---- random schedules ------------------------------------------------------------------------------------------------


def check_schedule(seed: int) -> tuple[int, int]:
    """A random device, bound, pool and load. Returns the steps in which a stream waited for a prompt, and those of them
    whose chunks were longer than a block."""
    rng = random.Random(seed)
    token = rng.uniform(1e-4, 4e-3)
    device = Device(rng.uniform(1e-3, 0.05), token * rng.random(), token, token * rng.random() / 2048)
    bound = rng.uniform(0.15, 1.0)
    limits = SchedulerLimits(4096, rng.choice((2, 4, 8)), rng.choice((64, 256, 1024)), max_stall_seconds=bound)
    bench = Bench(device, limits, num_blocks=rng.choice((80, 200, 600)))
    table = bench.scheduler.table
    shared = [rng.randrange(1000) for _ in range(800)]
    waited = cut = 0
    for _ in range(rng.randrange(8, 24)):
        while len(table.by_id) < limits.max_num_seqs + 1 and rng.random() < 0.6:
            own = [rng.randrange(1000) for _ in range(rng.choice((1, 20, 200, 1000)))]
            bench.add(shared[: rng.choice((0, 400, 800))] * rng.randrange(2) + own, rng.randrange(1, 12))
        before = table.in_state(RequestState.DECODING)
        plan = bench.plan()
        if plan is None:
            continue
        rows = {row.request: row for row in plan.rows}
        streams = [stream for stream in before if stream.state is RequestState.DECODING]
        suspects = [request for request in table.running.values() if is_suspect(request)]
        if not any(request.id in rows for request in suspects):
            assert all(stream.id in rows for stream in streams if stream not in suspects), "each stream has its token"
            prompts = [p for p in table.in_state(RequestState.PREFILLING) if p not in suspects]
            for prompt in sorted(prompts, key=lambda p: p.turn)[:1]:
                count = len(rows[prompt.id].tokens)
                assert count == prompt.num_uncomputed_tokens or count >= min(BLOCK, limits.prefill_chunk_tokens)
        if rng.random() < 0.02:
            bench.scheduler.worker_lost(Phase.DECODE, Ending(-signal.SIGSEGV))
            continue
        seconds = bench.run(plan, noise=rng.uniform(0.97, 1.03))
        others = [stream for stream in streams if len(plan.rows) > 1 or stream.id not in rows]
        if others and prompt_tokens(plan):
            most = bound / 2 if suspects else bound
            waited += 1
            cut += prompt_tokens(plan) > BLOCK
            assert seconds <= most or prompt_tokens(plan) <= BLOCK, (seed, seconds, most, prompt_tokens(plan))
    return waited, cut


def test_the_bound_holds_both_ways_in_random_schedules() -> None:
    """`make test-long` tries 10^5; one of them has shown that few tokens say little of what more would take."""
    check_schedule(59_703)
    waited, cut = map(sum, zip(*map(check_schedule, range(1000)), strict=True))
    assert waited > 3000 and cut > 1000


# ---- one at a time ---------------------------------------------------------------------------------------------------


def test_a_chunk_is_cut_to_what_the_streams_have_patience_for_and_whole_without_them() -> None:
    bench = Bench(Device(), SchedulerLimits(4096, 8, 1024, max_stall_seconds=0.5))
    bench.add(list(range(1024)), 1)
    plan = bench.next()
    assert prompt_tokens(plan) == 1024, "nobody decodes"
    bench.run(plan)
    bench.stream()
    bench.add(list(range(2000, 4000)), 1)
    steps = []
    while prompt_tokens(plan := bench.next()):
        steps.append(bench.run(plan))
    assert max(steps) < 0.5 and len(steps) > 4
    assert sorted(steps)[len(steps) // 2] > 0.35, "the bound is used"
    assert bench.scheduler.stalls == {Phase.PREFILL: 0, Phase.DECODE: 0}


def test_a_prompt_has_a_block_in_each_step_however_slow_the_device_and_what_is_late_is_counted() -> None:
    bench = Bench(Device(token=0.1), SchedulerLimits(4096, 8, 256, max_stall_seconds=0.2))
    bench.stream()
    bench.add(list(range(64)), 2)
    sizes = []
    while prompt_tokens(plan := bench.next()):
        sizes.append(prompt_tokens(plan))
        bench.run(plan)
    assert sizes == [BLOCK] * 4
    assert bench.scheduler.stalls == {Phase.PREFILL: 0, Phase.DECODE: 4}


def test_a_prompt_that_is_out_of_the_steps_is_not_counted_as_one_that_stalls() -> None:
    """A resident that is started again: half a minute in the queue is no silence of an admitted prompt."""
    bench = Bench(Device(), SchedulerLimits(4096, 8, 64, max_stall_seconds=0.5))
    bench.add(list(range(400)), 4)
    bench.run(bench.next())
    bench.scheduler.replace_kv(KVCacheManager(BlockPool(2000), BLOCK))
    bench.now += 30
    while prompt_tokens(plan := bench.next()):
        bench.run(plan)
    assert bench.scheduler.stalls == {Phase.PREFILL: 0, Phase.DECODE: 0}


def test_no_bound_cuts_nothing() -> None:
    bench = Bench(Device(token=1.0), SchedulerLimits(4096, 8, 256))
    bench.stream()
    bench.add(list(range(600)), 2)
    assert prompt_tokens(bench.next()) == 255
    assert bench.scheduler.stalls[Phase.DECODE] == 0


def test_a_wish_for_the_time_per_token_is_a_bound_as_long_as_its_stream_decodes() -> None:
    bench = Bench(Device(), SchedulerLimits(4096, 8, 1024, max_stall_seconds=1.0))
    stream = bench.stream(gap_wish=0.2, max_tokens=6)
    bench.add([2], 100)
    bench.add(list(range(4000)), 2)
    during, after = [], []
    while len((plan := bench.next()).rows) > 1:
        decodes = stream.state is RequestState.DECODING
        (during if decodes else after).append(bench.run(plan))
    assert max(during) < 0.2 and 0.5 < max(after) < 1.0


def test_what_was_seen_at_one_position_bounds_what_was_never_seen() -> None:
    stall = StallBound()
    assert stall.tokens(1.0, 100) == 0, "nothing is known yet"
    stall.observe(0, 0, seconds=0.1)
    stall.observe(100, 100, seconds=0.2)  # a millisecond each, and 3 % of the step that may be theirs
    assert stall.tokens(1.0, 100) == pytest.approx(700 / 1.06, abs=1)
    assert stall.tokens(1.0, 100, spent=0.2) == pytest.approx(500 / 1.06, abs=1)
    assert stall.tokens(1.0, 768) == pytest.approx(700 / 1.06 / 1.5, abs=1)
    assert stall.tokens(1.0, 5120) == pytest.approx(70 / 1.06, abs=1)
    stall.observe(100, 1024, seconds=0.25)
    assert stall.tokens(1.0, 1024) == pytest.approx(700 / 1.575, abs=1)
    assert stall.seconds(100, 2048) == pytest.approx(0.315)
    stall.observe(100, 100, seconds=0.4)  # slower is believed at once
    assert stall.tokens(1.0, 100) == pytest.approx(700 / 3.12, abs=1)
    stall.observe(100, 100, seconds=0.2)
    assert stall.tokens(1.0, 100) == pytest.approx(700 / 2.894, abs=1), "faster by and by"
    assert stall.tokens(0.1, 100) == 0


def test_a_step_that_hung_before_prompts_came_does_not_keep_them_at_a_block_a_step_for_ever() -> None:
    """A process that was stopped, a machine that slept: no step with prompts in it can be faster than one without."""
    bench = Bench(Device(), SchedulerLimits(4096, 8, 1024, max_stall_seconds=0.5))
    bench.stream()
    bench.run(bench.next(), noise=1000.0)
    bench.add(list(range(2000, 5000)), 1)
    sizes = []
    while prompt_tokens(plan := bench.next()):
        sizes.append(prompt_tokens(plan))
        assert bench.run(plan) < 0.5
    assert sizes[0] == BLOCK and max(sizes) > 4 * BLOCK, "nothing but prompts' steps were there to learn from"


def test_a_step_with_prompts_that_hung_is_forgotten_by_the_next_few() -> None:
    """Three seconds for a block of tokens (a stopped process, a swapped page): a prompt would be held at a block a step
    for eighty steps here, since a step of few tokens is believed by a few per cent."""
    bound, device = StallBound(), Device()
    bound.observe(0, 0, device.rest)
    bound.observe(16, 100, device.rest + 16 * device.token)
    steady = bound.tokens(1.0, 100)
    bound.observe(16, 100, 3.0)
    assert bound.tokens(1.0, 100) < 16  # believed at once
    steps = 0
    while bound.tokens(1.0, 100) < 0.5 * steady:
        tokens = max(16, bound.tokens(1.0, 100))
        seconds = device.rest + tokens * device.token
        assert seconds <= 1.0
        bound.observe(tokens, 100, seconds)
        steps += 1
    assert steps <= 12


@pytest.mark.parametrize("token", [0.001, 0.0005])
def test_it_is_forgotten_where_most_of_a_step_is_none_of_its_prompts(token: float) -> None:
    """Of a tenth of a second 16 ms are theirs: all of it taken for theirs refutes little, and some per cent less."""
    bound, bounded = StallBound(), 0.2
    bound.observe(0, 0, 0.1)
    for _ in range(200):
        steady = max(16, bound.tokens(bounded, 100))
        bound.observe(steady, 100, 0.1 + steady * token)
    bound.observe(16, 100, 10.0)
    steps = 0
    while (tokens := max(16, bound.tokens(bounded, 100))) < 0.5 * steady:
        bound.observe(tokens, 100, 0.1 + tokens * token)
        steps += 1
    assert steady > 3 * 16 and steps <= 30


def test_one_step_that_was_fast_by_chance_says_little() -> None:
    bound = StallBound()
    bound.observe(0, 0, 0.1)
    bound.observe(16, 100, 0.116)
    before = bound.tokens(0.2, 100)
    bound.observe(16, 100, 0.101)
    assert bound.tokens(0.2, 100) < 1.1 * before
    bound.observe(16, 100, 0.116)
    bound.observe(16, 100, 0.101)
    assert bound.tokens(0.2, 100) < 1.2 * before, "not two in a row"


def test_prompts_that_cost_nothing_measurable_get_more_in_each_step() -> None:
    """A device that waits for its weights does some tokens more in the same time: that is measured, not unknown."""
    bench = Bench(Device(token=0.0), SchedulerLimits(4096, 8, 1024, max_stall_seconds=0.5))
    bench.stream()
    bench.add(list(range(2000, 5000)), 1)
    sizes = []
    while prompt_tokens(plan := bench.next()):
        sizes.append(prompt_tokens(plan))
        bench.run(plan)
    assert sizes[:2] == [BLOCK, 8 * BLOCK], "eightfold at most: what is too dear shows in a step"
    assert max(sizes) > 12 * BLOCK and len(sizes) < 20, "by blocks it would take 188 steps"


def test_a_step_as_fast_as_one_without_prompts_bounds_the_next_by_all_of_its_time() -> None:
    stall = StallBound()
    stall.observe(0, 0, seconds=30.0)
    stall.observe(BLOCK, 8, seconds=0.16)
    assert stall.tokens(1.0, 100) == 77, "a hundredth of a second each, at most, and a doubt"
    stall.observe(0, 0, seconds=0.08)
    stall.observe(BLOCK, 8, seconds=0.16)
    stall.observe(0, 0, seconds=30.0)
    assert stall.tokens(1.0, 100) == 0
    stall.observe(BLOCK, 8, seconds=0.16)
    assert stall.tokens(1.0, 100) > 60, "what was known of the tokens tells the rest"


def test_prompts_behind_others_of_the_same_step_are_not_held_back() -> None:
    """For the controller: neither memory nor slots are what they wait for."""
    bench = Bench(Device(), SchedulerLimits(4096, 8, 256), num_blocks=200)
    bench.add(list(range(1000)), 100)
    bench.add(list(range(2000, 2300)), 100)
    plan = bench.next()
    assert bench.scheduler.table.waiting and bench.scheduler.held_back == ""
    bench.run(plan)
    bench.add(list(range(5000, 7000)), 2)  # more blocks than the others leave
    while prompt_tokens(plan := bench.next()):
        bench.run(plan)
    assert len(plan.rows) == 2 and bench.scheduler.held_back == "kv"


@pytest.mark.parametrize("steps", [0.0, 2.0])
def test_one_clients_wish_leaves_prompts_half_of_each_step(steps: float) -> None:
    """A millisecond is wished for where a step without prompts takes 20; where the SLO bounds wishes (0) it stands."""
    bench = Bench(Device(0.02, 0.0, 1e-4, 0.0), SchedulerLimits(4096, 8, 512))
    stream = bench.stream(gap_wish=0.001, max_tokens=1000)
    stream.gap_steps = steps
    bench.add([2] * 3000, 1)
    for _ in range(20):
        plan = bench.next()
        seconds = bench.run(plan)
    assert (prompt_tokens(plan) == BLOCK) == (not steps)
    assert seconds <= 0.04 and bench.scheduler.wishes_overruled == bool(steps), "counted once"
    if steps:
        assert prompt_tokens(plan) >= 100
