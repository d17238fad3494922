"""Random traffic, aborts, preemptions, crashes, stale plans and late masks against a worker that really writes a pool.

Each phase's worker executes its plan at moments of its own choosing, crashes with its last writes done but unreported,
and keeps writing for requests that were aborted meanwhile. Tokens are read back through the pool, so whatever goes
wrong with a block shows as a wrong token. A pool without quarantine must fail here: that is tested too.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Iterator, Sequence

import pytest
from tests.engine.fake_model import VOCABULARY, FakeRunner, reference, reference_scores

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.plans import requests_of
from semipd_engine.core.request import Request
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.ipc.messages import Sampling, StepPlan, StepResult, unpack_logprobs
from semipd_engine.pacing.quantum import Unpaced

pytestmark = pytest.mark.unit

BLOCK = 4


class HastyPool(BlockPool):
    """The mutation: blocks are reused as soon as they are released."""

    def _passed(self, state: object) -> bool:
        return True


class LateMask:
    """Allows every token, once it has made up its mind."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator

    def mask(self, output: Sequence[int]) -> bytes | None:
        return bytes([255]) * (VOCABULARY // 8) if self.random.random() < 0.5 else None

    def close(self) -> None:
        pass


class Worker:
    def __init__(self, runner: FakeRunner, phase: Phase) -> None:
        self.runner, self.phase = runner, phase
        self.recall = 0
        self.steps: Iterator[StepResult] | None = None
        self.unreported: deque[StepResult] = deque()

    def start(self, plan: StepPlan) -> None:
        self.steps = self.runner.execute(plan, lambda seq: self.phase is Phase.DECODE and self.recall >= seq)

    def execute(self) -> StepResult | None:
        result = next(self.steps, None) if self.steps is not None else None
        if result is None or result.last:
            self.steps = None
        return result


class Simulation:
    def __init__(
        self,
        seed: int,
        pool_type: type[BlockPool],
        num_blocks: int = 14,
        aggregated: bool | None = False,
        defects: bool = False,
    ) -> None:
        """`aggregated`: prompts share decode's steps; None: now they do, now they do not. `defects`: the block accounts
        go wrong now and then."""
        self.random = random.Random(seed)
        self.memory = array("i", [-1] * (num_blocks * BLOCK))
        pool = pool_type(num_blocks)
        limits = SchedulerLimits(max_model_len=52, max_num_seqs=6, prefill_chunk_tokens=7, max_decode_steps=4)
        self.scheduler = Scheduler(limits, KVCacheManager(pool, BLOCK), bool(aggregated))
        self.defects = defects
        self.switches = aggregated is None
        runner = FakeRunner(memoryview(self.memory), BLOCK, Unpaced())
        self.workers = {phase: Worker(runner, phase) for phase in Phase}
        self.requests: dict[int, Request] = {}
        self.outputs: dict[int, list[int]] = {}
        self.aborted: set[int] = set()
        self.finished: set[int] = set()
        self.prefixes = [[self.random.randrange(100) for _ in range(16)] for _ in range(3)]
        self.wrong = 0
        self.scored = 0
        self.crashes = 0

    def add(self) -> None:
        prompt = self.random.choice(self.prefixes)[: self.random.randrange(17)]
        prompt = prompt + [self.random.randrange(100) for _ in range(self.random.randrange(1, 12))]
        scored = 0 if self.random.random() < 0.2 else -1
        sampling = Sampling(temperature=0, max_tokens=self.random.randrange(1, 24), prompt_logprobs=scored)
        number, patience = len(self.requests), self.random.choice((0.0, 0.0, 5.0, -5.0))
        request = Request(number, str(number), prompt, sampling, received_at=0.0, patience=patience)
        if self.random.random() < 0.2:
            request.constraint = LateMask(self.random)
        self.requests[request.id] = request
        self.outputs[request.id] = []
        self.scheduler.add(request)

    def plan(self, phase: Phase) -> None:
        worker = self.workers[phase]
        if self.switches and self.random.random() < 0.02:
            self.scheduler.aggregate(not self.scheduler.aggregated)
        plan = self.scheduler.plan(phase, 0.0)
        if plan is not None:
            assert worker.steps is None and not worker.unreported
            busy = [requests_of(p) for p in self.scheduler.in_flight.values()]
            assert sum(map(len, busy)) == len(set().union(*busy)), "a request is in one queue's plan at a time"
            assert plan.max_steps == 1 or not any(row.mask for row in plan.rows)
            assert len({row.slot for row in plan.rows}) == len(plan.rows)
            if self.random.random() < 0.01:
                self.scheduler.plan_stale(phase)
            else:
                worker.start(plan)

    def deliver(self, worker: Worker) -> None:
        if worker.unreported:
            self.scheduler.book(worker.phase, worker.unreported.popleft(), 0.0)

    def crash(self, worker: Worker) -> None:
        self.crashes += worker.steps is not None
        if self.random.random() < 0.5:
            worker.execute()  # the step's writes are done, its report is lost
        while worker.unreported:
            self.deliver(worker)
        worker.steps = None
        self.scheduler.worker_lost(worker.phase)

    def step(self) -> None:
        worker = self.workers[self.random.choice(list(Phase))]
        dice = self.random.random()
        if self.defects and self.random.random() < 0.002:
            self.spoil()
        if dice < 0.06 and len(self.scheduler.table.by_id) < 12:
            self.add()
        elif dice < 0.075 and self.scheduler.table.by_id:
            victim = self.random.choice(list(self.scheduler.table.by_id))
            self.aborted.add(victim)
            self.scheduler.abort(victim)
        elif dice < 0.08:
            self.crash(worker)
        elif dice < 0.5 and worker.steps is not None:
            result = worker.execute()
            if result is not None:
                worker.unreported.append(result)
        else:
            self.deliver(worker)
            self.plan(worker.phase)
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

    def settle(self) -> None:
        assert self.scheduler.heal() is None or self.defects
        self.pool.check()
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

    def drain(self) -> None:
        for _ in range(20_000):
            if not self.scheduler.table.by_id:
                break
            for worker in self.workers.values():
                result = worker.execute()
                if result is not None:
                    worker.unreported.append(result)
                self.deliver(worker)
                self.plan(worker.phase)
            self.settle()
        for worker in self.workers.values():
            while worker.steps is not None or worker.unreported:
                result = worker.execute()
                if result is not None:
                    worker.unreported.append(result)
                self.deliver(worker)
        self.settle()


STEPS = 10_000
"""Of each run: hundreds of requests, and dozens of preemptions, crashes and aborts."""


@pytest.mark.parametrize(("seed", "aggregated"), [(0, False), (1, False), (2, True), (3, None)])
def test_no_token_changes_under_random_traffic(seed: int, aggregated: bool | None) -> None:
    simulation = Simulation(seed, BlockPool, aggregated=aggregated)
    for _ in range(STEPS):
        simulation.step()
    assert simulation.scheduler.preemptions > 10 and simulation.crashes > 10 and len(simulation.aborted) > 10
    assert simulation.scheduler.kv.hits_tokens > 100 and simulation.scored > 100
    simulation.drain()
    assert simulation.wrong == 0
    assert simulation.finished == set(simulation.requests)
    counts = simulation.pool.counts()
    assert counts.used == 0 and counts.quarantined == 0


def test_wrong_accounts_cost_no_request_its_life_and_change_no_token() -> None:
    simulation = Simulation(4, BlockPool, aggregated=None, defects=True)
    for _ in range(STEPS):
        simulation.step()
    assert simulation.scheduler.accounting_faults > 10
    simulation.defects = False
    simulation.scheduler.heal()
    simulation.drain()
    assert simulation.wrong == 0
    assert simulation.finished == set(simulation.requests)


def test_a_pool_without_quarantine_is_caught() -> None:
    simulation = Simulation(0, HastyPool)
    for _ in range(STEPS):
        simulation.step()
        if simulation.wrong:
            return
    raise AssertionError("no token changed")
