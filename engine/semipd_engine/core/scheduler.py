"""Which request runs next, in which queue, in which blocks. Two queues of plans: prefill's and decode's.

Neither waits for the other: each has at most one plan in flight and is planned anew as soon as it is free. Decode's may
have another behind it (`plan_behind`), whose steps count as in flight for the quarantine of blocks. In aggregated
operation prompts go into decode's queue, in the same steps as the rows that decode. Pure: it is told the time, returns
plans, and books what workers report. It knows no sockets, processes or memory.
"""

from __future__ import annotations

import msgspec

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.fault_isolation import KILLED, Ending, acquit, blame, suspect
from semipd_engine.core.kv_cache_manager import KVCacheManager, SequenceBlocks
from semipd_engine.core.plan_builder import Part, PlanBuilder, SchedulerLimits
from semipd_engine.core.plans import chunks_of, requests_of, row
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.request_table import RequestTable
from semipd_engine.ipc.requests import WORKER_CRASHED, RequestOutput
from semipd_engine.ipc.steps import Row, StepFailed, StepPlan, StepResult, TokenResult


class Scheduler:
    def __init__(self, limits: SchedulerLimits, kv: KVCacheManager, aggregated: bool = False) -> None:
        self.limits = limits
        self.aggregated = aggregated
        """Prompts take part in decode's steps (`aggregate`)."""
        self.table = RequestTable(kv)
        self.in_flight: dict[Phase, StepPlan] = {}
        self.behind: StepPlan | None = None
        """Decode's next one, at its worker already: of rows of the one in flight, whose tokens nobody knows yet."""
        self._builder = PlanBuilder(limits, self.table, self.in_flight)
        self._recall = False
        self.accounting_faults = 0
        self.stalls = dict.fromkeys(Phase, 0)
        """Times that a stream had no token, or an admitted prompt no step, for longer than the bound."""

    @property
    def preemptions(self) -> int:
        return self._builder.preemptions

    @property
    def wishes_overruled(self) -> int:
        """Wishes for the time per token that stood back for others' prompts."""
        return self._builder.overruled

    @property
    def kv(self) -> KVCacheManager:
        return self.table.kv

    @property
    def held_back(self) -> str:
        """Why the queue's head is not admitted although no prompt is in a step: ``slots``, ``kv``, or empty."""
        mixed = self.in_flight.get(Phase.DECODE) if self.aggregated else None
        if Phase.PREFILL in self.in_flight or not self.table.waiting or (mixed is not None and chunks_of(mixed)[0]):
            return ""
        return "slots" if self.table.num_running >= self.limits.max_num_seqs else "kv"

    # ---- requests come and go ------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request. One that can never run is answered with an error at once."""
        self.table.queue(request)
        length, longest = len(request.token_ids), self.limits.max_model_len
        if length == 0:
            self.table.fail(request, "the prompt is empty")
            return
        if length > longest:
            self.table.fail(request, f"the prompt has {length} tokens; max_model_len admits at most {longest}")
            return
        room = max(longest - length, 1)  # the token that the last position leads to has none of its own
        if request.sampling.max_tokens > room:
            request.sampling = msgspec.structs.replace(request.sampling, max_tokens=room)
        self._recall |= self.aggregated  # the new prompt is seen at the next step boundary

    def abort(self, request_id: int, reason: str = "abort") -> int:
        """Stop a request in whatever state it is. Its blocks, of which the number is returned, are free when no step in
        flight can touch them. `reason`: stop where its answer is complete all the same."""
        request = self.table.by_id.get(request_id)
        if request is None:
            return 0
        held = len(request.blocks.table)
        self._recall |= request.state is RequestState.DECODING
        self.table.finish(request, reason)
        self.table.emit(request)
        return held

    def aggregate(self, on: bool, tokens: int = 0) -> None:
        """Aggregated operation from the next plan on, or not. Plans in flight go on: each request is in one only.
        `tokens`: most of a step with prompts then; 0, or more than `limits` has: as many as that."""
        self._recall |= on and not self.aggregated
        self.aggregated = on
        most = self.limits.prefill_chunk_tokens
        self._builder.budget = min(tokens, most) if on and tokens else most

    def masks_ready(self) -> None:
        """Rows that sat out can take part again: at decode's next step boundary."""
        planned = requests_of(self.in_flight.get(Phase.DECODE))
        rows = self.table.in_state(RequestState.DECODING)
        self._recall |= any(row.constraint is not None and row.id not in planned for row in rows)

    def take_outputs(self) -> list[tuple[Request, RequestOutput]]:
        """What happened since the last call, oldest first."""
        return self.table.take_outputs()

    def take_recall(self) -> int | None:
        """Step number to write to the recall word, if the decode plan in flight should end at its next step."""
        plan = self.last_decode_plan
        wanted, self._recall = self._recall, False
        return plan.seq if wanted and plan is not None else None

    @property
    def last_decode_plan(self) -> StepPlan | None:
        """A recall with its number ends the one before it, too."""
        return self.behind or self.in_flight.get(Phase.DECODE)

    # ---- planning ------------------------------------------------------------------------------------------------

    def plan(self, queue: Phase, now: float) -> StepPlan | None:
        """The queue's next plan, put in flight; None if it has one, or nothing to do."""
        if not self.aggregated:
            return self.plan_prefill(now) if queue is Phase.PREFILL else self.plan_decode(now)
        return self.plan_mixed(now) if queue is Phase.DECODE else None

    def plan_prefill(self, now: float) -> StepPlan | None:
        """The next chunk of each prompt in the order of their turns, within the token budget."""
        return self._plan(Phase.PREFILL, (RequestState.PREFILLING,), now)

    def plan_decode(self, now: float = 0.0) -> StepPlan | None:
        """One row for each decoding request, with blocks granted for all steps of the plan."""
        return self._plan(Phase.DECODE, (RequestState.DECODING,), now)

    def plan_mixed(self, now: float) -> StepPlan | None:
        """One step of rows that decode and of prompts' chunks, within one token budget; several when there are none."""
        return self._plan(Phase.DECODE, (RequestState.PREFILLING, RequestState.DECODING), now)

    def _plan(self, queue: Phase, states: tuple[RequestState, ...], now: float) -> StepPlan | None:
        if queue in self.in_flight or self.table.fault is not None:
            return None
        parts, steps = list[Part](), 0
        with self.table.accounting():
            parts = self._builder.parts(queue, states, now)
            steps = self._builder.steps(parts) if parts else 0
        if not steps:
            return None
        seq = self.kv.pool.clocks[queue].plan(steps)
        for request in (part.request for part in parts):
            request.planned(queue, seq + steps - 1)
            if request.first_token_at is None:  # else it is a stream, perhaps preempted: its next token tells
                self._note_silence(Phase.PREFILL, request.last_chunk_at, now)
        plan = StepPlan(seq, steps, [row(part.request, part.count, part.mask) for part in parts])
        self.in_flight[queue] = plan
        if queue is Phase.DECODE:
            self._recall = False
        return plan

    def plan_behind(self) -> StepPlan | None:
        """Decode's plan behind the one in flight, for the same worker. None if there is one, or it cannot be known."""
        plan = self.in_flight.get(Phase.DECODE)
        if not self.limits.plans_ahead or plan is None or self.behind or self._recall or self.table.fault is not None:
            return None
        if self.aggregated and (self.table.waiting or self.table.in_state(RequestState.PREFILLING)):
            return None  # prompts are to share its steps
        rows, steps = list[Row](), 0
        with self.table.accounting():
            rows, steps = self._builder.behind(plan)
        if not rows:
            return None
        self.behind = StepPlan(self.kv.pool.clocks[Phase.DECODE].plan(steps), steps, rows)
        for each in rows:
            self.table.by_id[each.request].planned(Phase.DECODE, self.behind.seq + steps - 1)
        return self.behind

    # ---- booking -------------------------------------------------------------------------------------------------

    def book(self, phase: Phase, result: StepResult, now: float) -> None:
        """One step is complete. Results for requests that are gone are dropped."""
        plan = self.in_flight[phase]
        if phase is Phase.DECODE and result.seconds > 0:
            self._builder.stall.observe(*chunks_of(plan, result.seq - plan.seq), result.seconds)
        over = result.seq
        if result.seq == plan.seq + plan.max_steps - 1:
            self._forget(phase, and_behind=False)
        elif result.last:
            self._forget(phase)  # nobody continues a plan that ends early
            over = self.kv.pool.clocks[phase].planned
        with self.table.accounting():
            self.kv.pool.complete(phase, over)
        tokens = {token.request: token for token in result.tokens}
        scores = {each.request: each.logprobs for each in result.scores}
        by_id, withheld = self.table.by_id, self._builder.withheld
        for part in plan.rows:
            request, token = by_id.get(part.request), tokens.get(part.request)
            if request is None or request.state is RequestState.WAITING:
                continue  # gone, or computed again in new accounts
            self._recall |= request.id in withheld  # an older row can have its blocks now
            if part.targets and part.start == len(request.prompt_logprobs):
                request.prompt_logprobs += scores.get(request.id, [])
            if token is not None:
                self._computed(request, len(request.token_ids))
                self._recall |= phase is Phase.PREFILL  # the new row joins decode at its next step boundary
                request.state = RequestState.DECODING
                final = request.last_decode_step if phase is Phase.DECODE else request.last_prefill_step
                self._sampled(request, token, phase, (result.seq, min(result.seq + 1, final)), now)
            elif result.seq == plan.seq and part.sampling is None:
                request.last_chunk_at = now
                self._computed(request, part.start + len(part.tokens))

    def _computed(self, request: Request, num_tokens: int) -> None:
        request.num_computed_tokens = num_tokens
        if request.failures:
            acquit(request)
        kv = self.table.kv
        if kv.has_unpublished(request.blocks, num_tokens):
            with self.table.accounting():
                kv.publish(request.blocks, request.digests, request.token_ids, num_tokens, request.cache_salt)

    def _sampled(self, request: Request, result: TokenResult, phase: Phase, steps: tuple[int, int], now: float) -> None:
        """`steps`: the one that gave the token, and the last that a worker may have begun before it knew it."""
        request.token_ids.append(result.token)
        sampling, first = request.sampling, request.first_token_at is None
        if first:
            request.first_token_at = now
        elif self.limits.max_stall_seconds:
            self._note_silence(Phase.DECODE, request.last_token_at, now)
        request.last_token_at = now
        if result.token in sampling.stop_token_ids:
            reason: str | None = "stop"
        else:
            reason = "length" if request.num_output_tokens >= sampling.max_tokens else None
        if reason is not None:
            # Its length is known beforehand, a stop id is not; later steps do not touch its blocks, of whatever plan.
            request.planned(phase, steps[reason == "stop"])
            self.table.finish(request, reason)
        self.table.emit(request, token=result, first=first)

    def _note_silence(self, phase: Phase, since: float | None, now: float) -> None:
        """Something of that phase goes on, of which nothing was done since then."""
        bound = self.limits.max_stall_seconds
        self.stalls[phase] += bool(bound) and since is not None and now - since > bound

    # ---- trouble -------------------------------------------------------------------------------------------------

    def plan_failed(self, phase: Phase, failure: StepFailed) -> None:
        """A worker answered a plan with an exception: find the request that causes it, let the others go on."""
        involved = requests_of(self._drop(phase))
        for request in self.table.alive(involved):
            if request.id == failure.request or len(involved) == 1:
                self.table.fail(request, f"the step failed: {failure.error}")
            else:
                suspect(request)

    def plan_stale(self, phase: Phase, seq: int) -> bool:
        """A worker does not hold what the plan `seq` refers to: it has run nothing, and nobody is to blame. Plan again.
        False: it is forgotten already, with the plan before it."""
        plan = self.in_flight.get(phase)
        if plan is None or plan.seq != seq:
            return False
        self._drop(phase)
        return True

    def worker_lost(self, phase: Phase, ending: Ending = KILLED) -> None:
        """The worker is reaped and its channel drained: plan again from the last reported step."""
        involved = requests_of(self._drop(phase))
        for request in self.table.alive(involved):
            if (error := blame(request, ending, alone=len(involved) == 1)) is not None:
                self.table.fail(request, error, WORKER_CRASHED)

    def replace_kv(self, kv: KVCacheManager) -> None:
        """The pool is gone with its resident: every admitted request is computed again in the new one."""
        self.in_flight.clear()
        self.behind = None
        self._move_to(kv)
        for request in self.table.waiting:
            request.last_prefill_step = request.last_decode_step = 0

    def heal(self) -> str | None:
        """If the block accounts do not add up, start new ones and compute every admitted request again. What was wrong.

        Steps in flight still touch the old blocks: the new accounts have all of them in quarantine meanwhile.
        """
        with self.table.accounting():
            self.kv.pool.check()
        fault = self.table.fault
        if fault is None:
            return None
        self.accounting_faults += 1
        old = self.kv
        self._move_to(KVCacheManager(BlockPool.replacing(old.pool), old.block_size, old.prefix_caching))
        return str(fault)

    def _move_to(self, kv: KVCacheManager) -> None:
        kv.queries_tokens, kv.hits_tokens = self.kv.queries_tokens, self.kv.hits_tokens
        for request in self.table.in_state(RequestState.PREFILLING, RequestState.DECODING):
            request.blocks = SequenceBlocks()  # nothing to give back: those accounts are closed
            self.table.requeue(request)
        self.table.kv, self.table.fault = kv, None

    def _drop(self, phase: Phase) -> StepPlan | None:
        """Forget the plan in flight, and what continues it: whoever ran it is past all their steps."""
        with self.table.accounting():
            self.kv.pool.complete(phase, self.kv.pool.clocks[phase].planned)
        return self._forget(phase)

    def _forget(self, phase: Phase, and_behind: bool = True) -> StepPlan | None:
        """The phase's plan is over. The one behind it is in flight now, or is never run."""
        plan = self.in_flight.pop(phase, None)
        if phase is Phase.DECODE:
            behind, self.behind = self.behind, None
            if behind is not None and not and_behind:
                self.in_flight[phase] = behind
        return plan
