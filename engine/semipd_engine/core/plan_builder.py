"""Who takes part in the next plan of a queue, and with how many tokens. Grants blocks, and takes them from the newest.

Decode takes blocks step by step. When there are none the newest request gives its own back and is computed again later:
a newer prompt never stops an older stream. While a step of the newest is in flight its blocks cannot be taken: whoever
needs one sits out, and the newest gets no further chunk until it has paid.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from semipd_engine.contract import Phase
from semipd_engine.core.fault_isolation import by_suspicion, is_suspect
from semipd_engine.core.plans import requests_of, row_behind
from semipd_engine.core.request import ConstraintError, Request, RequestState
from semipd_engine.core.request_table import RequestTable
from semipd_engine.core.stall_bound import StallBound
from semipd_engine.core.waiting_queue import WaitingQueue, too_large
from semipd_engine.ipc.steps import Row, StepPlan


@dataclass(frozen=True)
class SchedulerLimits:
    max_model_len: int
    max_num_seqs: int
    prefill_chunk_tokens: int
    """Most tokens of a step in which prompts take part."""
    max_decode_steps: int = 8
    """Steps of one plan without prompts. A recall ends it earlier."""
    plans_ahead: bool = False
    """Decode's next plan is sent while one runs: the device waits for nobody between the two."""
    max_stall_seconds: float = 0.0
    """Whoever decodes has a step at least so often, and a prompt that is admitted a chunk of a block or more in each
    step: where prompts share decode's steps their chunks are cut to that. 0: no bound but the tokens of a step."""


@dataclass(frozen=True)
class Part:
    """A request's part in a plan that is being made."""

    request: Request
    count: int
    """Tokens to compute."""
    mask: bytes | None = None


class PlanBuilder:
    def __init__(self, limits: SchedulerLimits, table: RequestTable, in_flight: Mapping[Phase, StepPlan]) -> None:
        self._limits = limits
        self.budget = limits.prefill_chunk_tokens
        """Most tokens of a step in which prompts take part."""
        self._table = table
        self._in_flight = in_flight
        self._waiting = WaitingQueue(table, limits.max_num_seqs)
        self.withheld: set[int] = set()
        """Requests with a step in flight whose blocks an older row waits for."""
        self._suspect_ran: dict[Phase, bool] = dict.fromkeys(Phase, False)
        """The queue's last plan was a suspect's: the others have the next turn, so that it cannot starve them."""
        self.stall = StallBound()
        self.preemptions = 0
        self.overruled = 0
        """Requests whose wish for the time per token was bounded by what a step without prompts takes."""

    def parts(self, queue: Phase, states: Collection[RequestState], now: float) -> list[Part]:
        """Rows of the queue's next plan, of requests in these states: a suspect alone, or all the others. With
        `PREFILLING` that includes prompts that are admitted for it."""
        if RequestState.DECODING in states:
            self.withheld.clear()
        busy = self._busy() | self.withheld
        running = [r for r in self._table.in_state(*states) if r.id not in busy]
        suspects = by_suspicion(r for r in running if is_suspect(r))
        others = [r for r in running if not is_suspect(r)]
        parts: list[Part] = []
        if not self._suspect_ran[queue]:
            parts = self._alone(queue, suspects)
        if not parts:
            parts = self._together(queue, others, RequestState.PREFILLING in states, now)
        if not parts:
            parts = self._alone(queue, suspects)
        if parts:
            self._suspect_ran[queue] = is_suspect(parts[0].request)
        return parts

    def steps(self, parts: list[Part]) -> int:
        """How many steps these parts can make without another word from core. Grants their blocks."""
        chunks = any(part.request.state is RequestState.PREFILLING for part in parts)
        first = parts[0].request
        others_wait = is_suspect(first) and len(self._table.in_state(RequestState.DECODING)) > 1
        if chunks or others_wait or any(part.mask for part in parts):
            return 1
        remaining = {p.request.id: p.request.sampling.max_tokens - p.request.num_output_tokens for p in parts}
        steps = min(self._limits.max_decode_steps, max(remaining.values()))
        for request in (part.request for part in parts):
            computed = len(request.token_ids) - 1
            if not self._table.kv.grow(request.blocks, computed + min(steps, remaining[request.id])):
                steps = len(request.blocks.table) * self._table.kv.block_size - computed
        return steps

    def behind(self, plan: StepPlan) -> tuple[list[Row], int]:
        """Rows and steps of a plan that goes on where decode's `plan`, which runs, ends. Grants their blocks. None of
        them where the next plan depends on more than the tokens of this one: somebody joins or waits for blocks, a mask
        is needed, or a suspect is to run alone. It takes nobody's blocks: what must preempt can wait."""
        decoding = {request.id: request for request in self._table.in_state(RequestState.DECODING)}
        if self.withheld or decoding.keys() - requests_of(plan) or any(map(is_suspect, decoding.values())):
            return [], 0
        if any(len(row.tokens) > 1 or row.sampling is None or row.mask is not None for row in plan.rows):
            return [], 0
        remaining = {r.id: r.sampling.max_tokens for r in decoding.values()}
        for row in plan.rows:
            if row.request in remaining:
                remaining[row.request] -= row.output_index + plan.max_steps
        going = [row for row in plan.rows if remaining.get(row.request, 0) > 0]
        for row in going:  # each has its next step before one has more: for that the full plan would preempt
            if not self._table.kv.grow(decoding[row.request].blocks, row.start + plan.max_steps + 1):
                return [], 0
        steps = min(self._limits.max_decode_steps, max((remaining[row.request] for row in going), default=0))
        for row in going:
            start, blocks = row.start + plan.max_steps, decoding[row.request].blocks
            if not self._table.kv.grow(blocks, start + min(steps, remaining[row.request])):
                steps = len(blocks.table) * self._table.kv.block_size - start
        if steps < 1:
            return [], 0
        return [row_behind(row, plan.max_steps, decoding[row.request].blocks.table) for row in going], steps

    # ---- who ----------------------------------------------------------------------------------------------------

    def _alone(self, queue: Phase, suspects: list[Request]) -> list[Part]:
        """The first of them that can run."""
        for request in suspects:
            part = self._part(request, self._chunk(queue, request, self.budget))
            if part is not None:
                return [part]
        return []

    def _together(self, queue: Phase, running: list[Request], admit: bool, now: float) -> list[Part]:
        """All rows that decode, then chunks in the order of the prompts' turns, within the budget of tokens."""
        parts = [part for part in map(self._decode_part, running) if part is not None]
        # A later row may have preempted an earlier one.
        parts = [part for part in parts if part.request.state is RequestState.DECODING]
        if not admit:
            return parts
        most = self.budget
        budget = min(most, max(most - len(parts), self._table.kv.block_size))  # many rows do not starve the prompts
        prompts = [request for request in running if request.state is RequestState.PREFILLING]
        taken, spent = 0, 0.0
        for request in self._waiting.in_turn(prompts, now):
            if is_suspect(request):  # just admitted, again
                if parts:
                    continue  # its own turn comes, without the others
                return self._alone(queue, [request])
            room = self._chunk(queue, request, budget, taken, spent)
            part = self._part(request, room) if room > 0 else None
            if part is not None:
                parts.append(part)
                taken += part.count
                spent += self.stall.seconds(part.count, request.num_computed_tokens + part.count // 2)
                budget -= part.count
            if budget == 0 or room <= 0:
                break
        return parts

    def _chunk(self, queue: Phase, request: Request, most: int, taken: int = 0, spent: float = 0.0) -> int:
        """Tokens, at most `most`, of the request's next chunk in a step: as many as those who decode in it have the
        patience for, beside others' chunks of `taken` tokens that take `spent` seconds, and a block in any case."""
        streams = self._table.in_state(RequestState.DECODING) if queue is Phase.DECODE else []
        others = [stream for stream in streams if stream is not request]
        bounds = [self._limits.max_stall_seconds, *(self._gap(stream) for stream in others)]
        if not others or not any(bounds):
            return most
        seconds = min(bound for bound in bounds if bound)
        if any(map(is_suspect, self._table.running.values())):
            seconds /= 2  # a suspect's step and one of the others take turns
        start, least = request.num_computed_tokens, self._table.kv.block_size - taken
        fits = self.stall.tokens(seconds, start, spent)  # at the chunk's beginning: too many, if anything
        middle = start + min(most, fits, request.num_uncomputed_tokens) // 2
        return min(most, max(self.stall.tokens(seconds, middle, spent), least))

    def _gap(self, stream: Request) -> float:
        """Seconds that it wishes between two tokens, as far as that leaves prompts a part of each step; 0: no wish."""
        wish, least = stream.gap_wish, stream.gap_steps * self.stall.rest
        if wish is None or wish >= least:
            return wish or 0.0
        self.overruled += not stream.gap_overruled
        stream.gap_overruled = True
        return least

    def _decode_part(self, request: Request) -> Part | None:
        return self._part(request, 1) if request.state is RequestState.DECODING else None

    def _part(self, request: Request, budget: int) -> Part | None:
        """The request's next tokens, at most `budget`. None while the mask of the token that they lead to is late, or
        while no block can be had for them."""
        count, mask = min(budget, request.num_uncomputed_tokens), None
        if request.constraint is not None and count == request.num_uncomputed_tokens:
            try:
                mask = request.constraint.mask(request.output_token_ids)
            except ConstraintError as error:
                self._table.fail(request, str(error), error.code)
            if mask is None:
                return None
        if request.state is RequestState.DECODING and not self._grant_next_step(request):
            return None
        return Part(request, count, mask)

    # ---- blocks --------------------------------------------------------------------------------------------------

    def _grant_next_step(self, request: Request) -> bool:
        """Blocks for one more position, by preempting the newest requests if there is no other way."""
        kv, needed = self._table.kv, len(request.token_ids)
        if kv.blocks_for(needed) > kv.pool.num_blocks:
            self._table.fail(request, too_large(kv, needed))
            return False
        while not kv.grow(request.blocks, needed):
            victim = self._table.in_state(RequestState.PREFILLING, RequestState.DECODING)[-1]
            if victim.id in self._busy():
                self.withheld.add(victim.id)
                return False
            self.preemptions += 1
            victim.preemptions += 1
            self._table.requeue(victim)
            if victim is request:
                return False
        return True

    def _busy(self) -> set[int]:
        """Requests that a step in flight works on."""
        return set().union(*(requests_of(plan) for plan in self._in_flight.values()))
