"""All unfinished requests, the queue, and the way out: every request leaves here, with its blocks and its last output.

Knows nothing of plans: who runs next is the scheduler's business.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Iterable

from semipd_engine.core.block_pool import BlockAccountingError
from semipd_engine.core.kv_cache_manager import KVCacheManager, SequenceBlocks
from semipd_engine.core.request import Request, RequestState
from semipd_engine.ipc.requests import ENGINE_ERROR, RequestOutput
from semipd_engine.ipc.steps import TokenResult
from semipd_engine.ipc.tokens import NO_LOGPROBS, pack_logprobs

TURN = operator.attrgetter("turn")


class RequestTable:
    def __init__(self, kv: KVCacheManager) -> None:
        self.kv = kv
        self.by_id: dict[int, Request] = {}
        self.running: dict[int, Request] = {}
        """Those that are admitted: they have blocks and a slot. Few, where `waiting` may be long."""
        self.waiting: list[Request] = []
        """In the order of service; a preempted request returns to its place."""
        self._outputs: list[tuple[Request, RequestOutput]] = []
        self._assignments = 0
        self._accounting = _Accounting(self)
        self.fault: BlockAccountingError | None = None
        """The block accounts are wrong: `Scheduler.heal` makes new ones."""

    @property
    def num_running(self) -> int:
        return len(self.running)

    def in_state(self, *states: RequestState) -> list[Request]:
        """Of those that are admitted, oldest first."""
        return sorted((r for r in self.running.values() if r.state in states), key=lambda r: r.id)

    def alive(self, ids: Iterable[int]) -> list[Request]:
        return [self.by_id[i] for i in sorted(ids) if i in self.by_id]

    def silence(self, now: float) -> tuple[float, float]:
        """Seconds: how long the oldest wait for a first token lasts, and the longest silence of a stream."""
        waits = (now - r.received_at for r in self.by_id.values() if r.first_token_at is None)
        gaps = (now - r.last_token_at for r in self.by_id.values() if r.last_token_at is not None)
        return max(waits, default=0.0), max(gaps, default=0.0)

    def queue(self, request: Request) -> None:
        self.by_id[request.id] = request
        bisect.insort(self.waiting, request, key=TURN)

    def admit(self, request: Request, blocks: SequenceBlocks) -> None:
        """It leaves the queue with its blocks, and takes the lowest slot that nobody has."""
        taken = {r.slot for r in self.running.values()}
        self._assignments += 1
        request.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        request.assignment = self._assignments
        request.blocks = blocks
        request.num_computed_tokens = blocks.num_cached_tokens
        request.state = RequestState.PREFILLING
        request.waits_for = None
        self._leave_queue(request)
        self.running[request.id] = request

    def accounting(self) -> _Accounting:
        """What goes wrong with the accounts inside is remembered, and costs no request its life."""
        return self._accounting

    def requeue(self, request: Request) -> None:
        """Give the blocks back and compute everything again later; the output tokens so far are kept."""
        blocks, request.blocks = request.blocks, SequenceBlocks()
        request.num_computed_tokens = 0
        request.state = RequestState.WAITING
        if request.scores_prompt:
            request.prompt_logprobs = []  # they are counted from the prompt's beginning
        del self.running[request.id]
        bisect.insort(self.waiting, request, key=TURN)
        with self.accounting():
            self.kv.release(blocks, request.last_steps)

    def finish(self, request: Request, reason: str) -> None:
        """Free the blocks and forget the request. The caller emits the last output."""
        if request.state is RequestState.WAITING:
            self._leave_queue(request)
        self.running.pop(request.id, None)
        request.state, request.waits_for = RequestState.FINISHED, None
        request.finish_reason = reason
        del self.by_id[request.id]
        if request.constraint is not None:
            request.constraint.close()
        with self.accounting():
            self.kv.release(request.blocks, request.last_steps)

    def _leave_queue(self, request: Request) -> None:
        """Found by its turn: a client of thousands may leave at once."""
        del self.waiting[bisect.bisect_left(self.waiting, request.turn, key=TURN)]

    def fail(self, request: Request, message: str, code: str = ENGINE_ERROR) -> None:
        self.finish(request, "error")
        self.emit(request, error=message, code=code)

    def emit(
        self,
        request: Request,
        token: TokenResult | None = None,
        first: bool = False,
        error: str | None = None,
        code: str = ENGINE_ERROR,
    ) -> None:
        if token is not None and not first and token.logprobs is None:  # nearly all of them
            plain = RequestOutput(
                request.key,
                [token.token],
                finish_reason=request.finish_reason,
                cached_tokens=request.cached_tokens,
                preemptions=request.preemptions,
            )
            self._outputs.append((request, plain))
            return
        output = RequestOutput(
            key=request.key,
            token_ids=[token.token] if token else [],
            logprobs=[token.logprobs] if token and token.logprobs else [],
            finish_reason=request.finish_reason if error is None else None,
            error=error,
            error_code=code,
            first_token_at=request.first_token_at if first else None,
            scheduled_at=request.scheduled_at if first else None,
            cached_tokens=request.cached_tokens,
            preemptions=request.preemptions,
            prompt_logprobs=pack_logprobs(request.prompt_logprobs) if first else NO_LOGPROBS,
        )
        self._outputs.append((request, output))

    def take_outputs(self) -> list[tuple[Request, RequestOutput]]:
        """What happened since the last call, oldest first."""
        outputs, self._outputs = self._outputs, []
        return outputs


class _Accounting:
    """One for all: it is entered for each token, where a generator would take a tenth of the scheduler's time."""

    def __init__(self, table: RequestTable) -> None:
        self._table = table

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, BlockAccountingError):
            return False
        self._table.fault = self._table.fault or error
        return True
