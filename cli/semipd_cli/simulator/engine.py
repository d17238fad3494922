"""One engine in virtual time: the production scheduler, KV manager, partitions and observer; only steps are made up.

Each phase has at most one plan in flight, as in core. A step is work at the whole device that drains at the phase's
speed; speeds change when the other phase comes or goes. It knows no policy.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from semipd_cli.simulator.oracle import Oracle
from semipd_engine.contract import Gate, Observation, Phase, Split
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.observation import Limits, Observer
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.plans import size_of
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.ipc import requests
from semipd_engine.ipc.steps import StepPlan, StepResult, TokenResult
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.server.gate import Backlog, refusal


@dataclass(frozen=True)
class Arrival:
    at: float
    prompt: int
    output: int
    prefix: tuple[int, ...] = ()
    """Ids of blocks that other prompts may share; empty: nothing is shared."""


@dataclass(frozen=True)
class Size:
    """The simulated engine's options."""

    max_num_seqs: int = 64
    prefill_chunk_tokens: int = 512
    kv_tokens: int = 400_000
    block_size: int = 16
    switch_seconds: float = 0.05
    """From asking for a split to its being in force."""
    max_queued: int = 512


@dataclass(frozen=True)
class Done:
    at: float
    prompt: int
    output: int
    ttft: float | None
    tpot: float | None
    """None for a single token; both None: refused."""


class _Flight:
    __slots__ = ("_sampled", "_until", "index", "left", "plan", "recalled")

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self.left = 0.0
        """Work of the present step, seconds at the whole device."""
        self.index = 0
        self.recalled = False
        self._sampled: list[TokenResult] = []
        self._until = 0
        """The first step that samples less than `_sampled` does: before it nothing changes."""

    def samples(self) -> list[TokenResult]:
        """Tokens that the present step samples. Steps of a plan come one after the other."""
        index = self.index
        if index >= self._until:
            going = [
                (row.request, row.sampling.max_tokens - row.output_index)
                for row in self.plan.rows
                if row.sampling is not None and row.output_index + index < row.sampling.max_tokens
            ]
            self._sampled = [TokenResult(request, 0) for request, _ in going]
            self._until = min((ends for _, ends in going), default=self.plan.max_steps)
        return self._sampled


class VirtualEngine:
    def __init__(self, arrivals: Iterable[Arrival], oracle: Oracle, size: Size, seed: int, split: Split) -> None:
        self.now = 0.0
        self.split = split
        self.done: list[Done] = []
        self._arrivals: Iterator[Arrival] = iter(arrivals)
        self._submitted: deque[Arrival] = deque()
        self._next = next(self._arrivals, None)
        self._oracle = oracle
        self._size = size
        self._rng = random.Random(seed)
        self._kv = KVCacheManager(BlockPool(size.kv_tokens // size.block_size), size.block_size, prefix_caching=False)
        longest = size.kv_tokens
        limits = SchedulerLimits(longest, size.max_num_seqs, size.prefill_chunk_tokens)
        self._scheduler = Scheduler(limits, self._kv)
        self._scheduler.aggregate(split.mixed_tokens > 0, split.mixed_tokens)
        self._observer = Observer("simulated")
        self._flights: dict[Phase, _Flight] = {}
        self._count = 0
        self._pending: list[tuple[float, int, Split]] = []
        self._gate = requests.Gate()
        self._backlog = Backlog()
        self._tickets: dict[int, int] = {}
        """By request, of those without a first token."""

    # ---- time ------------------------------------------------------------------------------------------------------

    def run_until(self, end: float) -> None:
        flights = self._flights
        while True:
            both = len(flights) == 2
            rates = {p: self._oracle.speed(p, self.split) if both else 1.0 for p in flights}
            soonest, ends = None, end
            for phase, flight in flights.items():
                at = self.now + flight.left / rates[phase]
                if at < ends:
                    soonest, ends = phase, at
            arrives = self._next is not None and self._next.at < ends
            if arrives:
                assert self._next is not None
                soonest, ends = None, max(self.now, self._next.at)
            switched = bool(self._pending) and self._pending[0][0] < ends
            if switched:
                arrives, soonest, ends = False, None, max(self.now, self._pending[0][0])
            passed = ends - self.now
            for phase, flight in flights.items():
                flight.left -= passed * rates[phase]
            self.now = ends
            if switched:
                self.split = heapq.heappop(self._pending)[2]
                self._scheduler.aggregate(self.split.mixed_tokens > 0, self.split.mixed_tokens)
            elif arrives:
                self._arrive()
            elif soonest is not None:
                self._step_done(soonest)
            else:
                return
            self._dispatch()

    def submit(self, arrival: Arrival) -> None:
        """One more request, after those given at the start; in order of arrival."""
        self._submitted.append(arrival)
        if self._next is None:
            self._next = self._submitted.popleft()

    def follow(self, gate: Gate) -> None:
        """From now on requests are refused by this, as api does."""
        self._gate = requests.Gate(gate.ttft_seconds, gate.token_seconds, gate.square_seconds, gate.most_in_work)

    @property
    def drained(self) -> bool:
        return self._next is None and not self._scheduler.table.by_id

    @property
    def in_work(self) -> int:
        """Requests that were asked for and are not over."""
        return len(self._scheduler.table.by_id)

    def switch(self, split: Split, delay: float | None = None) -> None:
        self._count += 1
        heapq.heappush(
            self._pending, (self.now + (self._size.switch_seconds if delay is None else delay), self._count, split)
        )

    def observe(self, since: int) -> Observation:
        """As core tells it but for `max_tokens`: a client's limit there, and here how long an answer will be."""
        table = self._scheduler.table
        counts = self._kv.pool.counts()
        o = self._observer.observation(
            self.now,
            since,
            table.waiting,
            (r for r in table.by_id.values() if r.state is not RequestState.WAITING),
            Limits(self._size.max_num_seqs, self._size.kv_tokens, self._size.prefill_chunk_tokens),
            preemptions=self._scheduler.preemptions,
            kv_used_tokens=counts.used * self._size.block_size,
        )
        return o.model_copy(update={"running": tuple(r.model_copy(update={"max_tokens": 0}) for r in o.running)})

    # ---- events ----------------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        arrival = self._next
        assert arrival is not None
        self._next = next(self._arrivals, None) or (self._submitted.popleft() if self._submitted else None)
        if len(self._scheduler.table.waiting) >= self._size.max_queued or self._refused(arrival):
            self._observer.rejected(arrival.at, arrival.prompt, self.now)
            self.done.append(Done(arrival.at, arrival.prompt, arrival.output, None, None))
            return
        request = Request(
            id=self._count,
            key="",
            prompt_token_ids=[0] * arrival.prompt,
            sampling=Sampling(max_tokens=arrival.output),
            received_at=arrival.at,
        )
        self._count += 1
        self._tickets[request.id] = self._backlog.add(arrival.prompt, self.now, self._gate)
        self._observer.arrived(request)
        self._scheduler.add(request)

    def _refused(self, arrival: Arrival) -> bool:
        return refusal(self._gate, self._backlog, (arrival.prompt,), self.now, in_work=self.in_work) is not None

    def _step_done(self, phase: Phase) -> None:
        flight = self._flights[phase]
        plan = flight.plan
        self._observer.step_ended(phase, self.now)
        tokens = flight.samples()
        seq = plan.seq + flight.index
        flight.index += 1
        last = flight.index >= plan.max_steps or flight.recalled or not flight.samples()
        self._scheduler.book(phase, StepResult(seq=seq, tokens=tokens, last=last, finished_at=self.now), self.now)
        if last:
            del self._flights[phase]
        else:
            self._begin_step(phase, flight)

    def _dispatch(self) -> None:
        scheduler = self._scheduler
        for phase in (Phase.DECODE, Phase.PREFILL):
            if phase not in self._flights:
                plan = scheduler.plan(phase, self.now)
                if plan is not None:
                    flight = self._flights[phase] = _Flight(plan)
                    self._begin_step(phase, flight)
        self._observer.held_back(scheduler.held_back, self.now)
        if scheduler.take_recall() is not None and (decode := self._flights.get(Phase.DECODE)) is not None:
            decode.recalled = True
        for request, output in scheduler.take_outputs():
            if (ticket := self._tickets.pop(request.id, None)) is not None:  # the first that is heard of it
                self._backlog.done(ticket, self.now)
            if output.finish_reason is not None or output.error is not None:
                self._finish(request)

    def _begin_step(self, phase: Phase, flight: _Flight) -> None:
        size = size_of(flight.plan, flight.index)
        if phase is Phase.DECODE and size.prompt_tokens:
            flight.left = self._oracle.mixed(size, self._rng)
        else:
            flight.left = self._oracle.work(phase, size, self._rng)
        self._observer.step_began(phase, size, self.split, self.now)

    def _finish(self, request: Request) -> None:
        self._observer.finished(request, self.now)
        first, last, count = request.first_token_at, request.last_token_at, request.num_output_tokens
        tpot = (last - first) / (count - 1) if first is not None and last is not None and count > 1 else None
        ttft = first - request.received_at if first is not None else None
        self.done.append(Done(request.received_at, len(request.prompt_token_ids), count, ttft, tpot))
