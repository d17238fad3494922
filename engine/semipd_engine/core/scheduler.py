"""Which request runs next, in which phase, in which blocks. Two plans at a time: one for prefill, one for decode.

Neither plan waits for the other: each phase has at most one plan in flight and is planned anew as soon as it is free.
Pure: it is told the time, returns plans, and books what workers report. It knows no sockets, processes or memory.

Rules: first come, first served; a prompt's blocks are reserved whole at admission, so that partial prefills cannot
deadlock against decode; decode takes blocks step by step and preempts the newest request when there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from semipd_engine.contract import Phase
from semipd_engine.core.fault_isolation import KILLED, Ending, acquit, blame, by_suspicion, is_suspect, suspect
from semipd_engine.core.kv_cache_manager import KVCacheManager, extend_digests
from semipd_engine.core.plans import requests_of, row
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.request_table import RequestTable
from semipd_engine.ipc.messages import (
    WORKER_CRASHED,
    RequestOutput,
    StepFailed,
    StepPlan,
    StepResult,
    TokenResult,
)


@dataclass(frozen=True)
class SchedulerLimits:
    max_model_len: int
    max_num_seqs: int
    prefill_chunk_tokens: int
    max_decode_steps: int = 8
    """Steps of one decode plan. A recall ends it earlier."""


@dataclass(frozen=True)
class _Part:
    """A request's part in a plan that is being made."""

    request: Request
    count: int
    """Tokens to compute."""
    mask: bytes | None = None


class Scheduler:
    def __init__(self, limits: SchedulerLimits, kv: KVCacheManager) -> None:
        self.limits = limits
        self.table = RequestTable(kv)
        self.in_flight: dict[Phase, StepPlan] = {}
        self.preemptions = 0
        self._recall = False
        self._suspect_ran: dict[Phase, bool] = dict.fromkeys(Phase, False)
        """The phase's last plan was a suspect's: the others have the next turn, so that it cannot starve them."""

    @property
    def kv(self) -> KVCacheManager:
        return self.table.kv

    @property
    def has_prompts(self) -> bool:
        """Some prompt is not computed yet."""
        return bool(self.table.waiting or self.table.in_state(RequestState.PREFILLING))

    # ---- requests come and go ------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request. One that can never run is answered with an error at once."""
        self.table.queue(request)
        length, longest = len(request.token_ids), self.limits.max_model_len - 1
        if length == 0:
            self.table.fail(request, "the prompt is empty")
        elif length > longest:
            self.table.fail(request, f"the prompt has {length} tokens; max_model_len admits at most {longest}")
        elif request.sampling.max_tokens > self.limits.max_model_len - length:
            room = self.limits.max_model_len - length
            request.sampling = msgspec.structs.replace(request.sampling, max_tokens=room)

    def abort(self, request_id: int) -> None:
        """Stop a request in whatever state it is. Its blocks return when no step in flight can touch them."""
        request = self.table.by_id.get(request_id)
        if request is not None:
            self._recall |= request_id in requests_of(self.in_flight.get(Phase.DECODE))
            self.table.finish(request, "abort")
            self.table.emit(request)

    def take_outputs(self) -> list[tuple[Request, RequestOutput]]:
        """What happened since the last call, oldest first."""
        return self.table.take_outputs()

    def take_recall(self) -> int | None:
        """Step number to write to the recall word, if the decode plan in flight should end at its next step."""
        plan = self.in_flight.get(Phase.DECODE)
        wanted, self._recall = self._recall, False
        return plan.seq if wanted and plan is not None else None

    # ---- planning ------------------------------------------------------------------------------------------------

    def plan_prefill(self, now: float) -> StepPlan | None:
        """The next chunk of each prompt in order of arrival, within the token budget."""
        if Phase.PREFILL in self.in_flight:
            return None
        budget = self.limits.prefill_chunk_tokens
        taken: list[_Part] = []
        for request in self._prefill_candidates(now):
            if taken and (is_suspect(request) or is_suspect(taken[0].request)):
                break
            part = self._part(request, budget)
            if part is not None:
                taken.append(part)
                budget -= part.count
            if budget == 0:
                break
        return self._planned(Phase.PREFILL, taken, steps=1)

    def plan_decode(self, max_steps: int | None = None) -> StepPlan | None:
        """One row for each decoding request, with blocks granted for all steps of the plan."""
        if Phase.DECODE in self.in_flight:
            return None
        rows: list[_Part] = []
        suspects_last = self._suspect_ran[Phase.DECODE]
        decoding = by_suspicion(self.table.in_state(RequestState.DECODING))
        for request in sorted(decoding, key=lambda r: is_suspect(r) == suspects_last):
            if rows and is_suspect(request):
                break
            part = self._part(request, 1)
            if part is not None and request.state is RequestState.DECODING and self._grant_next_step(request):
                rows.append(part)
                if is_suspect(request):
                    break
        # A later row may have preempted an earlier one.
        rows = [part for part in rows if part.request.state is RequestState.DECODING]
        most = 1 if any(part.mask for part in rows) else max_steps or self.limits.max_decode_steps
        steps = self._grant_steps_ahead([part.request for part in rows], most) if rows else 0
        self._recall = self._recall and not rows
        return self._planned(Phase.DECODE, rows, steps)

    def _part(self, request: Request, budget: int) -> _Part | None:
        """The request's next tokens, at most `budget`; None while the mask of the token that they lead to is late."""
        count = min(budget, request.num_uncomputed_tokens)
        if request.constraint is None or count < request.num_uncomputed_tokens:
            return _Part(request, count)
        mask = request.constraint.mask(request.output_token_ids)
        return _Part(request, count, mask) if mask is not None else None

    def _planned(self, queue: Phase, parts: list[_Part], steps: int) -> StepPlan | None:
        """Put a plan of these parts in flight; None if there are none."""
        if not parts:
            return None
        seq = self.kv.pool.clocks[queue].plan(steps)
        self._suspect_ran[queue] = is_suspect(parts[0].request)
        for part in parts:
            part.request.planned(queue, seq + steps - 1)
        plan = StepPlan(seq, steps, [row(part.request, part.count, part.mask) for part in parts])
        self.in_flight[queue] = plan
        return plan

    def _prefill_candidates(self, now: float) -> Iterator[Request]:
        """Prompts already begun, then the queue's head while it can be admitted; suspects before it or after it."""
        begun = self.table.in_state(RequestState.PREFILLING)
        suspects = by_suspicion(request for request in begun if is_suspect(request))
        yield from (request for request in begun if not is_suspect(request))
        if not self._suspect_ran[Phase.PREFILL]:
            yield from suspects
        yield from self._newly_admitted(now)
        if self._suspect_ran[Phase.PREFILL]:
            yield from suspects

    def _newly_admitted(self, now: float) -> Iterator[Request]:
        waiting = self.table.waiting
        while waiting:
            request = waiting[0]
            if self.kv.blocks_for(len(request.token_ids)) > self.kv.pool.num_blocks:
                self.table.fail(request, self._too_large(len(request.token_ids)))
            elif self._admit(request, now):
                yield request
            else:
                return

    def _admit(self, request: Request, now: float) -> bool:
        running = self.table.num_running
        if running >= self.limits.max_num_seqs:
            return False
        num_tokens = len(request.token_ids)
        if self.kv.prefix_caching:
            extend_digests(request.digests, request.token_ids, self.kv.block_size)
        # Each running request is at most one block away from asking for its next one: leave it that block.
        blocks = self.kv.admit(request.digests, num_tokens, reserve=running)
        if blocks is None:
            return False
        self.table.admit(request, blocks)
        if request.scheduled_at is None:
            request.scheduled_at = now
            request.cached_tokens = blocks.num_cached_tokens
        return True

    def _grant_next_step(self, request: Request) -> bool:
        """Blocks for one more position, by preempting the newest requests if there is no other way."""
        needed = len(request.token_ids)
        if self.kv.blocks_for(needed) > self.kv.pool.num_blocks:
            self.table.fail(request, self._too_large(needed))
            return False
        while not self.kv.grow(request.blocks, needed):
            victim = self._newest_idle()
            if victim is None or victim.id < request.id:
                # Only a newer prompt whose step is in flight stands in the way: its blocks come when the step is over.
                return False
            self.preemptions += 1
            victim.preemptions += 1
            self.table.requeue(victim)
            if victim is request:
                return False
        return True

    def _grant_steps_ahead(self, rows: list[Request], max_steps: int) -> int:
        """How many steps the rows can make without another word from core."""
        remaining = {r.id: r.sampling.max_tokens - r.num_output_tokens for r in rows}
        steps = min(max_steps, max(remaining.values()))
        for request in rows:
            computed = len(request.token_ids) - 1
            if not self.kv.grow(request.blocks, computed + min(steps, remaining[request.id])):
                steps = len(request.blocks.table) * self.kv.block_size - computed
        return steps

    def _newest_idle(self) -> Request | None:
        """The newest admitted request that no step in flight works on."""
        busy = requests_of(self.in_flight.get(Phase.PREFILL))
        running = self.table.in_state(RequestState.PREFILLING, RequestState.DECODING)
        return next((r for r in reversed(running) if r.id not in busy), None)

    # ---- booking -------------------------------------------------------------------------------------------------

    def book(self, phase: Phase, result: StepResult, now: float) -> None:
        """One step is complete. Results for requests that are gone are dropped."""
        plan = self.in_flight[phase]
        final = plan.seq + plan.max_steps - 1
        last = result.last or result.seq == final
        self.kv.pool.complete(phase, final if last else result.seq)
        if last:
            del self.in_flight[phase]
        tokens = {token.request: token for token in result.tokens}
        for part in plan.rows:
            request, token = self.table.by_id.get(part.request), tokens.get(part.request)
            if request is None:
                continue
            if token is not None:
                self._computed(request, len(request.token_ids))
                # A new row joins decode at its next step boundary.
                self._recall |= request.state is RequestState.PREFILLING and phase is Phase.PREFILL
                request.state = RequestState.DECODING
                self._sampled(request, token, phase, result.seq, now)
            elif result.seq == plan.seq and part.outputs == "none":
                self._computed(request, part.start + len(part.tokens))

    def _computed(self, request: Request, num_tokens: int) -> None:
        request.num_computed_tokens = num_tokens
        acquit(request)
        self.kv.publish(request.blocks, request.digests, request.token_ids, num_tokens)

    def _sampled(self, request: Request, result: TokenResult, phase: Phase, step: int, now: float) -> None:
        request.token_ids.append(result.token)
        request.last_token_at = now
        first = request.first_token_at is None
        if first:
            request.first_token_at = now
        if result.token in request.sampling.stop_token_ids:
            reason: str | None = "stop"
        else:
            reason = "length" if request.num_output_tokens >= request.sampling.max_tokens else None
        if reason is not None:
            request.planned(phase, step)  # a row that has ended is not touched by the plan's later steps
            self.table.finish(request, reason)
        self.table.emit(request, token=result, first=first)

    # ---- trouble -------------------------------------------------------------------------------------------------

    def plan_failed(self, phase: Phase, failure: StepFailed) -> None:
        """A worker answered a plan with an exception: find the request that causes it, let the others go on."""
        involved = requests_of(self._drop(phase))
        for request in self.table.alive(involved):
            if request.id == failure.request or len(involved) == 1:
                self.table.fail(request, f"the step failed: {failure.error}")
            else:
                suspect(request)

    def plan_stale(self, phase: Phase) -> None:
        """A worker does not hold what the plan refers to: it has run nothing, and nobody is to blame. Plan again."""
        self._drop(phase)

    def worker_lost(self, phase: Phase, ending: Ending = KILLED) -> None:
        """The worker is reaped and its channel drained: plan again from the last reported step."""
        involved = requests_of(self._drop(phase))
        for request in self.table.alive(involved):
            if (error := blame(request, ending, alone=len(involved) == 1)) is not None:
                self.table.fail(request, error, WORKER_CRASHED)

    def replace_kv(self, kv: KVCacheManager) -> None:
        """The pool is gone with its resident: every admitted request is computed again in the new one."""
        self.in_flight.clear()
        kv.queries_tokens, kv.hits_tokens = self.kv.queries_tokens, self.kv.hits_tokens
        for request in self.table.in_state(RequestState.PREFILLING, RequestState.DECODING):
            self.table.requeue(request)
        for request in self.table.waiting:
            request.last_prefill_step = request.last_decode_step = 0
        self.table.kv = kv

    def _drop(self, phase: Phase) -> StepPlan | None:
        """Forget the plan in flight: whoever ran it is past all its steps."""
        self.kv.pool.complete(phase, self.kv.pool.clocks[phase].planned)
        return self.in_flight.pop(phase, None)

    def _too_large(self, num_tokens: int) -> str:
        capacity = self.kv.pool.num_blocks * self.kv.block_size
        return f"{num_tokens} tokens do not fit the KV cache of {capacity}: raise --kv-cache-memory"
