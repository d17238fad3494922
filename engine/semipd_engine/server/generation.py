"""Requests in flight: gives each sequence a key, routes core's outputs to it, and hands its deltas to an HTTP handler.

Knows core's messages and the metrics; knows no HTTP. All of it runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.ipc.requests import AbortRequest, AddRequest, ApiToCore, Gate, Outputs, RequestOutput
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.server import timing
from semipd_engine.server.errors import ApiError, core_error, engine_failure, expired, unavailable
from semipd_engine.server.gate import Backlog
from semipd_engine.server.metrics import EngineMetrics
from semipd_engine.server.params import SEED_MASK
from semipd_engine.server.sequence import Delta, Sequence, TextOptions
from semipd_engine.server.terms import Terms

log = logging.getLogger(__name__)

TOKENS_AT_ONCE = 1 << 18
"""Of prompts that are sent to core before everybody else has a turn: 2 ms."""

T = TypeVar("T")


class Generations:
    """All requests in flight, by the key that core uses."""

    def __init__(self, metrics: EngineMetrics, tokenizer: Tokenizer, send: Callable[[ApiToCore], None]) -> None:
        self.metrics = metrics
        self.send = send
        self.tokenizer = tokenizer
        self.by_key: dict[str, Generation] = {}
        self.open: set[Generation] = set()
        """HTTP requests admitted and not yet closed."""
        self.waiting = 0
        """Sequences admitted that have no token yet; counted from before their prompt is tokenised."""
        self.backlog = Backlog()
        """Their prompts. Further choices of one prompt find it computed."""
        self.in_work = 0
        """Sequences admitted that are not over."""

    def outputs(self, message: Outputs) -> None:
        now = time.monotonic()
        tokens = 0
        for output in message.outputs:
            generation = self.by_key.get(output.key)
            if generation is not None:
                tokens += generation.receive(output, now)
        if tokens:
            self.metrics.observe("vllm:iteration_tokens_total", tokens)

    def lost(self) -> None:
        """Core is gone, or silent, and with it every sequence it had."""
        error = unavailable("the engine's scheduler was lost; send the request again", "engine_restarted")
        for generation in set(self.by_key.values()):
            generation.fail(error)

    def fail_all(self, error: ApiError) -> None:
        """Those, too, that core does not have yet."""
        for generation in self.open:
            generation.fail(error)


class Generation:
    """One HTTP request: reserved at admission, started once tokenised, closed on every path.

    Use as a context manager or call `close`: it aborts what is still running (a client that left, an error).
    """

    def __init__(
        self,
        generations: Generations,
        request_id: str,
        prompts: Iterable[int],
        choices: int,
        received_at: float,
        gate: Gate | None = None,
    ) -> None:
        """`prompts`: about how many tokens each has; each is answered `choices` times. `gate`: what let it in."""
        self.id = request_id
        """As the client knows it. It need not be unique."""
        self._key = uuid.uuid4().hex
        self.received_at = received_at
        self.sequences: list[Sequence] = []
        self._all = generations
        self._keys: dict[str, Sequence] = {}
        self._running: set[str] = set()
        self._tickets = [
            generations.backlog.add(0 if repeat else tokens, received_at, None if repeat else gate)
            for tokens in prompts
            for repeat in range(choices)
        ]
        """Of each sequence's prompt, by the sequence's index."""
        self._unanswered = self._unfinished = len(self._tickets)
        self._pending: list[Delta] = []
        self._error: ApiError | None = None
        self._wake = asyncio.Event()
        self._closed = False
        self._terms = Terms()
        self._expiry: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[Any] | None = None
        """What is done for it before it starts."""
        generations.open.add(self)
        generations.waiting += len(self._tickets)
        generations.in_work += len(self._tickets)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def accept(self, terms: Terms) -> None:
        """Serve it by these from now on: where its time is over it ends with an error."""
        self._terms = terms
        if terms.time_limit is not None:
            left = self.received_at + terms.time_limit - time.monotonic()
            self._expiry = asyncio.get_running_loop().call_later(left, self._expire, terms.time_limit)

    def _expire(self, seconds: float) -> None:
        if not self._unfinished:
            return  # only its client is slow
        self._all.metrics.count("semipd_expired_requests_total")
        self.fail(expired(seconds))

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result. Raises `ApiError` once the request's time is over: the work is given up then."""
        self._work = task = asyncio.ensure_future(work)
        if self._error is not None:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            self._work = None

    async def start(self, prompts: Iterable[tuple[list[int], Sampling]], n: int, options: TextOptions) -> None:
        """Send ``n`` sequences for each prompt to core, in the order of the choices. Raises `ApiError` if the request's
        time is over, or core is lost meanwhile."""
        sent = 0
        metrics = self._all.metrics
        metrics.observe("vllm:request_params_n", n)
        order = (self._terms.priority, self._terms.ttft_target, self._terms.tpot_target)
        for prompt, sampling in prompts:
            for repeat in range(n):
                if sent > TOKENS_AT_ONCE:
                    sent = 0
                    await asyncio.sleep(0)
                if self._error is not None:
                    raise self._error
                sent += len(prompt)
                index = len(self.sequences)
                key = f"{self._key}-{index}"
                seeded = sampling if repeat == 0 else reseed(sampling, repeat, options.score_each)
                sequence = Sequence(index, prompt, seeded, options, self._all.tokenizer)
                if repeat == 0:
                    self._all.backlog.correct(self._tickets[index], len(prompt))
                self.sequences.append(sequence)
                self._keys[key] = sequence
                self._all.by_key[key] = self
                self._running.add(key)
                self._all.send(
                    AddRequest(
                        key, prompt, seeded, self.received_at, options.cache_salt, *order, grammar=options.grammar
                    )
                )
            metrics.observe("vllm:request_params_max_tokens", sampling.max_tokens)

    def receive(self, output: RequestOutput, now: float) -> int:
        """Take one output of core; returns the tokens that it stands for in its step, a prompt's included."""
        sequence = self._keys[output.key]
        if output.key not in self._running:
            return 0
        if output.error is not None:
            self.fail(core_error(output.error, output.error_code))
            return 0
        if output.finish_reason == "abort":
            self.fail(unavailable("the engine gave the request up; send it again", "engine_restarted"))
            return 0
        try:
            tokens = self._advance(sequence, output, now)
        except Exception:  # one sequence's bad text must not end the loop that serves all the others
            log.exception("request %s failed in the API process", self.id)
            self.fail(engine_failure("the API process failed on this request"))
            return 0
        if sequence.finish_reason is not None:
            self._running.discard(output.key)
            if output.finish_reason is None:
                self._all.send(AbortRequest(output.key, ended=True))
            self._finished(sequence, sequence.finish_reason)
        self._wake.set()
        return tokens

    def fail(self, error: ApiError) -> None:
        """End the whole request; `deltas` raises `error` after what came before it."""
        if self._error is None:
            self._error = error
        if self._work is not None:
            self._work.cancel()
        self._end_running("error")
        self._wake.set()

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """What arrived since the last turn, one `Delta` for each choice that moved, until all have finished."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, []
            merged: dict[int, Delta] = {}
            for delta in pending:
                if delta.index in merged:
                    merged[delta.index].merge(delta)
                else:
                    merged[delta.index] = delta
            if merged:
                yield list(merged.values())
            if self._error is not None:
                raise self._error
            if not self._running and not self._pending:
                return

    def close(self) -> None:
        """Forget the request and abort what still runs. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        self._end_running("abort")
        for key in self._keys:
            self._all.by_key.pop(key, None)
        self._answered(self._unanswered, self._tickets, came=False)
        self._over(self._unfinished)
        self._all.open.discard(self)
        if self.sequences:
            longest = max(sequence.output_tokens for sequence in self.sequences)
            self._all.metrics.observe("vllm:request_max_num_generation_tokens", longest)

    def _advance(self, sequence: Sequence, output: RequestOutput, now: float) -> int:
        tokens = len(output.token_ids)
        self._pending.append(sequence.push(output))
        if not tokens:
            return 0
        if not timing.tokens_came(self._all.metrics, sequence, tokens, now, self.received_at, self._terms):
            return tokens
        self._answered(1, [self._tickets[sequence.index]])
        return tokens + sequence.prompt_tokens

    def _end_running(self, reason: str) -> None:
        for key in self._running:
            self._all.send(AbortRequest(key))
            self._finished(self._keys[key], reason)
        self._running.clear()

    def _answered(self, sequences: int, tickets: Iterable[int], *, came: bool = True) -> None:
        """So many have their first token, or will have none; `tickets`: of these and of others that were before."""
        self._unanswered -= sequences
        self._all.waiting -= sequences
        now = time.monotonic()
        for ticket in tickets:
            self._all.backlog.done(ticket, now, came=came)

    def _over(self, sequences: int) -> None:
        self._unfinished -= sequences
        self._all.in_work -= sequences

    def _finished(self, sequence: Sequence, reason: str) -> None:
        self._over(1)
        timing.ended(self._all.metrics, sequence, reason, self.received_at, self._terms)


def reseed(sampling: Sampling, repeat: int, score: bool) -> Sampling:
    """The sampling of choice `repeat` of a prompt: equal seeds would give equal texts. What is known of the prompt is
    known from choice 0, unless each is to `score` it."""
    scored = sampling.prompt_logprobs if score else -1
    return msgspec.structs.replace(sampling, seed=(sampling.seed + repeat) & SEED_MASK, prompt_logprobs=scored)
