"""A model of the engine around the real scheduler: random traffic against workers that really write a pool.

Requests come, share prefixes, are aborted and preempted; partitions are switched, workers and residents die, plans are
stale and masks late. Each phase's worker executes its plan at moments of its own choosing, dies with its last writes
done but unreported, keeps writing for requests that were aborted meanwhile, and once more for those that a token ended:
it is a step ahead. With plans ahead decode's worker goes on with what continues its plan, where that comes in time, and
holds then what the complete plan says. Tokens are read back through the pool, so whatever goes wrong with a block shows
as a wrong token; `Simulation.check` looks at the accounts after each step.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from tests.engine.fake_model import VOCABULARY, FakeRunner, reference, reference_scores

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.plans import UNKNOWN, continuation, requests_of
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.ipc.steps import Continuation, PlanStale, StepPlan, StepResult
from semipd_engine.ipc.tokens import Sampling, unpack_logprobs
from semipd_engine.pacing.quantum import Unpaced
from semipd_engine.worker.servable import StaleSlot

BLOCK = 4
LONGEST = 52


class LateMask:
    """Allows every token, once it has made up its mind."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator

    def mask(self, output: Sequence[int]) -> bytes | None:
        return bytes([255]) * (VOCABULARY // 8) if self.random.random() < 0.5 else None

    def close(self) -> None:
        pass


class Worker:
    def __init__(self, runner: FakeRunner, phase: Phase, generator: random.Random) -> None:
        self.runner, self.phase, self.random = runner, phase, generator
        self.recall = 0
        self.steps: Iterator[StepResult] | None = None
        self.channel: deque[Continuation] = deque()
        self.taken: Continuation | None = None
        self.unreported: deque[StepResult | PlanStale] = deque()

    def start(self, plan: StepPlan) -> None:
        self.refuse()
        self.steps = self.runner.execute(
            plan, lambda seq: self.phase is Phase.DECODE and self.recall >= seq, self.following
        )

    def following(self, seq: int) -> Continuation | None:
        if not self.channel or self.channel[0].seq != seq or self.random.random() < 0.1:  # or it comes too late
            return None
        self.taken = self.channel.popleft()
        return self.taken

    def refuse(self) -> None:
        """What is in the channel continues nothing."""
        while self.channel:
            self.unreported.append(PlanStale(self.channel.popleft().seq))

    def execute(self) -> StepResult | None:
        """One step, to be reported later."""
        self.taken = None
        try:
            result = next(self.steps, None) if self.steps is not None else None
        except StaleSlot as stale:
            assert stale.seq is not None
            self.unreported.append(PlanStale(stale.seq))
            result = None
        if result is not None:
            self.unreported.append(result)
        if result is None or (result.last and self.taken is None):
            self.steps = None
            self.refuse()
        return result


class Simulation:
    def __init__(
        self,
        seed: int,
        pool_type: type[BlockPool],
        num_blocks: int = 14,
        aggregated: bool | None = False,
        defects: bool = False,
        ahead: bool = False,
    ) -> None:
        """`ahead`: decode's next plan is sent while one runs. `aggregated`: prompts share decode's steps; None: now
        they do, now they do not. `defects`: the block accounts go wrong now and then, and nobody looks at them but the
        scheduler."""
        self.random = random.Random(seed)
        self.memory = array("i", [-1] * (num_blocks * BLOCK))
        pool = pool_type(num_blocks)
        limits = SchedulerLimits(LONGEST, max_num_seqs=6, prefill_chunk_tokens=7, max_decode_steps=4, plans_ahead=ahead)
        self.scheduler = Scheduler(limits, KVCacheManager(pool, BLOCK), bool(aggregated))
        self.defects = defects
        self.looks = True
        """At the accounts, after each step."""
        self.pool_type = pool_type
        self.mixes = aggregated is None
        self.workers = {phase: self.born(phase) for phase in Phase}
        self.switching: set[Phase] = set()
        """Phases of which the next plan goes to another worker."""
        self.tables: dict[int, list[int]] = {}
        """Assignment of a slot -> the block table of its last plan."""
        self.behind: dict[int, StepPlan] = {}
        """Those that were sent ahead, complete."""
        self.seen: Counter[str] = Counter()
        self.requests: dict[int, Request] = {}
        self.outputs: dict[int, list[int]] = {}
        self.aborted: set[int] = set()
        self.finished: set[int] = set()
        self.prefixes = [[self.random.randrange(100) for _ in range(16)] for _ in range(3)]
        self.wrong = 0
        self.scored = 0

    def born(self, phase: Phase) -> Worker:
        """A worker that knows nothing but the memory."""
        return Worker(FakeRunner(memoryview(self.memory), BLOCK, Unpaced(), ahead=True), phase, self.random)

    def add(self) -> None:
        prompt = self.random.choice(self.prefixes)[: self.random.randrange(17)]
        prompt = prompt + [self.random.randrange(100) for _ in range(self.random.randrange(1, 12))]
        scored = 0 if self.random.random() < 0.2 else -1
        most = self.random.randrange(1, 24)
        if self.random.random() < 0.04:  # as long as the model: one token, which has no position
            prompt += [self.random.randrange(100) for _ in range(LONGEST - len(prompt))]
            most = 1
        stops = self.random.sample(reference(prompt, most), 1) if self.random.random() < 0.4 else []
        sampling = Sampling(temperature=0, max_tokens=most, stop_token_ids=tuple(stops), prompt_logprobs=scored)
        number, patience = len(self.requests), self.random.choice((0.0, 0.0, 5.0, -5.0))
        request = Request(number, str(number), prompt, sampling, received_at=0.0, patience=patience)
        if self.random.random() < 0.2:
            request.constraint = LateMask(self.random)
        self.requests[request.id] = request
        self.outputs[request.id] = []
        self.scheduler.add(request)

    def plan(self, phase: Phase) -> None:
        if self.mixes and self.random.random() < 0.02:
            self.scheduler.aggregate(not self.scheduler.aggregated)
        plan = self.scheduler.plan(phase, 0.0)
        if plan is None:
            return
        self.check_plan(plan)
        worker = self.workers[phase]
        assert worker.steps is None, "a phase has steps in flight on one worker"
        assert all(isinstance(answer, PlanStale) for answer in worker.unreported)
        if phase in self.switching:
            self.switching.discard(phase)
            worker = self.workers[phase] = self.born(phase)
            self.seen["switch"] += 1
        if self.random.random() < 0.01:
            self.scheduler.plan_stale(phase, plan.seq)
            self.seen["stale"] += 1
        else:
            worker.start(plan)

    def plan_behind(self) -> None:
        running, worker = self.scheduler.in_flight.get(Phase.DECODE), self.workers[Phase.DECODE]
        if Phase.DECODE in self.switching or (plan := self.scheduler.plan_behind()) is None:
            return
        assert running is not None and plan.seq == running.seq + running.max_steps
        self.check_plan(plan)
        self.behind[plan.seq] = plan
        worker.channel.append(continuation(running, plan))
        self.seen["sent"] += 1

    def execute(self, worker: Worker) -> None:
        result, taken = worker.execute(), worker.taken
        if result is None or taken is None:
            return
        self.seen["ahead"] += 1
        whole = {row.request: row for row in self.behind[taken.seq].rows}
        going = {row.request: (start, row.block_table) for row, _, start in worker.runner.running}
        assert taken.seq == result.seq + 1
        assert going == {request: (whole[request].start, whole[request].block_table) for request in going}
        ended = set(whole) - set(going)
        sampled = {token.request: token.token for token in result.tokens}
        for request in ended & set(sampled):
            assert sampled[request] in self.requests[request].sampling.stop_token_ids, "who goes on, goes on"

    def switch(self, phase: Phase) -> None:
        """Another partition: decode's plan ends at its next step, the next one goes to a worker of another rung."""
        self.switching.add(phase)
        plan = self.scheduler.last_decode_plan
        if plan is not None and phase is Phase.DECODE:
            self.workers[phase].recall = plan.seq

    def deliver(self, worker: Worker) -> None:
        if not worker.unreported:
            return
        answer = worker.unreported.popleft()
        if isinstance(answer, PlanStale):
            self.seen["late ahead"] += self.scheduler.plan_stale(worker.phase, answer.seq)
        else:
            self.scheduler.book(worker.phase, answer, 0.0)

    def crash(self, worker: Worker) -> None:
        self.seen["crash"] += worker.steps is not None
        if self.random.random() < 0.5:
            lost = list(worker.unreported)
            worker.execute()  # the step's writes are done, its report is lost
            worker.unreported = deque(lost)
        while worker.unreported:
            self.deliver(worker)
        self.workers[worker.phase] = self.born(worker.phase)
        self.scheduler.worker_lost(worker.phase)

    def lose_resident(self) -> None:
        """Its workers die with it, and the memory is another."""
        self.seen["resident"] += 1
        for worker in tuple(self.workers.values()):
            self.crash(worker)
        for at in range(len(self.memory)):
            self.memory[at] = -1
        self.scheduler.replace_kv(KVCacheManager(self.pool_type(self.pool.num_blocks), BLOCK))
        self.tables.clear()

    def step(self) -> None:
        worker = self.workers[self.random.choice(list(Phase))]
        dice = self.random.random()
        if self.defects and self.random.random() < 0.002:
            self.spoil()
            self.seen["defect"] += 1
        if dice < 0.06 and len(self.scheduler.table.by_id) < 12:
            self.add()
        elif dice < 0.075 and self.scheduler.table.by_id:
            victim = self.random.choice(list(self.scheduler.table.by_id))
            self.aborted.add(victim)
            self.seen["abort"] += 1
            self.scheduler.abort(victim)
        elif dice < 0.08:
            self.crash(worker)
        elif dice < 0.0803:
            self.lose_resident()
        elif dice < 0.085:
            self.switch(worker.phase)
        elif dice < 0.5 and (worker.steps is not None or worker.channel):
            self.execute(worker)
        else:
            self.deliver(worker)
            self.plan(worker.phase)
            self.plan_behind()
            recall = self.scheduler.take_recall()
            if recall is not None:
                self.workers[Phase.DECODE].recall = recall
        self.settle()

    def spoil(self) -> None:
        """A defect of the accounts: a block too many, or one that is forgotten while somebody has it."""
        used = [block for block, state in enumerate(self.pool._blocks) if state.references]
        if used and self.random.random() < 0.5:
            self.pool._blocks[self.random.choice(used)].references = 0
        else:
            self.pool._used += 1

    @property
    def pool(self) -> BlockPool:
        return self.scheduler.kv.pool

    def check_plan(self, plan: StepPlan) -> None:
        """What architecture says of a plan, the moment that it is made."""
        in_flight = [requests_of(p) for p in self.scheduler.in_flight.values()]
        assert sum(map(len, in_flight)) == len(set().union(*in_flight)), "a request is in one queue's plan at a time"
        assert plan.max_steps == 1 or not any(row.mask for row in plan.rows), "a plan with a masked row has one step"
        assert len({row.slot for row in plan.rows}) == len(plan.rows), "a slot is one request's"
        self.seen["late"] += any(
            request.state is RequestState.DECODING
            and request.constraint is not None
            and request.id not in in_flight[-1]
            for request in self.scheduler.table.running.values()
        )
        for row in plan.rows:
            assert row.tokens != [UNKNOWN] or plan is self.scheduler.behind, "a plan is complete, but for that"
            steps = 1 if row.sampling is None else min(plan.max_steps, row.sampling.max_tokens - row.output_index)
            end = row.start + len(row.tokens) + steps - 1
            assert end <= len(row.block_table) * BLOCK, "all steps of a plan are within blocks already granted"
            before = self.tables.setdefault(row.assignment, row.block_table)
            assert row.block_table[: len(before)] == before, "hand-over is by index: a table only grows"
            self.tables[row.assignment] = row.block_table

    def check(self) -> None:
        """What architecture says of blocks, between any two events."""
        self.pool.check()  # free + used + cached + quarantined = total at every tick
        blocks, held = self.pool._blocks, Counter[int]()
        for request in self.scheduler.table.running.values():
            published = request.blocks.num_published
            assert published <= request.num_computed_tokens // BLOCK, "a prefix is published after its step's report"
            held.update(request.blocks.table)
            for block in request.blocks.table[published:]:
                assert blocks[block].references == 1, "one owner allocates: what is not published is one request's"
        assert len(held) == self.pool.counts().used
        assert all(blocks[block].references == count for block, count in held.items())
        behind = [self.scheduler.behind] if self.scheduler.behind is not None else []
        for plan in [*self.scheduler.in_flight.values(), *behind]:
            for row in plan.rows:
                request = self.requests[row.request]
                if request.finish_reason != "abort" and request.state is not RequestState.WAITING:
                    continue
                for block in row.block_table[row.start // BLOCK :]:
                    kept = block in self.pool._quarantined or blocks[block].digest is not None
                    assert kept, "freed blocks are quarantined while a step in flight may write them"

    def settle(self) -> None:
        fault = self.scheduler.heal()
        assert fault is None or self.defects, fault
        if self.looks and not self.defects:
            self.check()
        for request, output in self.scheduler.take_outputs():
            assert request.id not in self.finished, "output after the end"
            assert output.error is None, output.error
            self.outputs[request.id] += output.token_ids
            if output.first_token_at is not None:
                scores = [each.logprob for each in unpack_logprobs(output.prompt_logprobs)]
                asked = request.sampling.prompt_logprobs >= 0
                self.wrong += scores != (reference_scores(request.prompt_token_ids) if asked else [])
                self.scored += len(scores)
            if output.finish_reason is not None:
                self.finished.add(request.id)
                expected = reference(request.prompt_token_ids, request.sampling.max_tokens)
                got = self.outputs[request.id]
                self.wrong += got != expected[: len(got)]
                if output.finish_reason == "length":
                    self.wrong += len(got) != len(expected)
                if output.finish_reason == "stop":
                    self.seen["stop"] += 1
                    stops = request.sampling.stop_token_ids
                    self.wrong += [token in stops for token in got] != [False] * (len(got) - 1) + [True]

    def run(self, steps: int) -> None:
        """So many events, then until everybody is served. Raises AssertionError for what must not be."""
        for _ in range(steps):
            self.step()
        self.drain()
        assert self.wrong == 0
        assert self.finished == set(self.requests), "no accepted request is lost, whoever died"
        counts = self.pool.counts()
        assert counts.used == 0 and counts.quarantined == 0
        self.seen["preempt"], self.seen["score"] = self.scheduler.preemptions, self.scored
        self.seen["share"] = self.scheduler.kv.hits_tokens

    def drain(self) -> None:
        for _ in range(20_000):
            if not self.scheduler.table.by_id:
                break
            for worker in self.workers.values():
                self.execute(worker)
                self.deliver(worker)
                self.plan(worker.phase)
            self.settle()
        for worker in self.workers.values():
            while worker.steps is not None or worker.channel or worker.unreported:
                self.execute(worker)
                self.deliver(worker)
        self.settle()
