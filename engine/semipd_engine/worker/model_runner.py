"""Executes plans: one forward pass for each step, then sampling. Stateless between plans.

Knows nothing of processes, channels or the scheduler, and nothing of phases: a step is rows, whatever their lengths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.ipc.steps import Continuation, StepPlan, StepResult, TargetScores, TokenResult
from semipd_engine.ipc.tokens import TokenLogprobs
from semipd_engine.kernels import Kernels
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.memory.pages_ahead import PagesAhead
from semipd_engine.model.decoder import Decoder
from semipd_engine.model.stage import Step
from semipd_engine.pacing.quantum import Pacer, in_quanta
from semipd_engine.sampling.sampler import NOT_FINITE, SamplingRow, sample, token_logprobs
from semipd_engine.worker.captured_steps import CapturedSteps
from semipd_engine.worker.decode_graphs import Capture, DecodeGraphs
from semipd_engine.worker.input_batch import InputBatch, InputBuffers, Limits
from semipd_engine.worker.servable import Following, StaleSlot, nothing_follows

SCORED_AT_ONCE = 64
"""Positions of a prompt: their logits are as wide as the vocabulary."""
SAMPLE_SECONDS, SCORE_SECONDS = 2e-8, 1e-8
"""Of one core for each token of the vocabulary: to draw one of a row's, with filters, and to take its logarithms.
Cautious, as `kernels.rates`."""


class NotFiniteError(Exception):
    """The model gave no number for a token: NaN in its weights, or a dtype that its activations overflow."""

    def __init__(self, request: int) -> None:
        super().__init__("the model gives NaN or infinity for this request; check its weights and the dtype")
        self.request = request


def the_only_rung(number: int) -> None:
    """Of a worker that has its limit for life."""


class ModelRunner:
    def __init__(
        self,
        config: ModelConfig,
        weights: WeightArena,
        kv: KVPool,
        kernels: Kernels,
        pacer: Pacer,
        max_model_len: int,
        capture: Capture | None = None,
        choose: Callable[[int], None] = the_only_rung,
    ) -> None:
        """`weights` are named as in `weight_specs`, in the formats of `kernels`, of `kv.dtype`. Copies nothing.
        `capture`: decode steps become programs, now. `choose`: what is queued from now on runs on this rung."""
        self._choose = choose
        self._device = weights.region.data.device
        self.kernels = kernels
        self._buffers, self._sampled = InputBuffers(self._device), InputBuffers(self._device)
        self._pacer = pacer
        self.decoder = Decoder(config, weights, kv, kernels, pacer)
        self._pages = PagesAhead(kv)
        self._limits = Limits(config.vocab_size, kv.num_blocks, kv.block_size, max_model_len)
        self.graphs: DecodeGraphs | None = None
        if capture is not None:
            self.graphs = DecodeGraphs(self.decoder, kernels, self._device, self._limits.most_blocks, capture)

    def prepare(self) -> bool:
        return self._pages.take_some()

    def execute(
        self, plan: StepPlan, recalled: Callable[[int], bool], following: Following = nothing_follows
    ) -> Iterator[StepResult]:
        """Yield one result after each step. Ends after `max_steps`, when all rows have finished, or after the step in
        which ``recalled(plan.seq)`` became true. What continues the plan is looked for before its last step, and is run
        as if the plan had been longer. Raises `PlanError` before the first step, and `StaleSlot` for what has been
        taken and cannot be continued."""
        self._choose(plan.rung)
        try:
            yield from self._steps(plan, recalled, following)
        except Exception:
            self._finish()  # a step that failed writes no more: its blocks are given to others
            raise

    def _steps(self, plan: StepPlan, recalled: Callable[[int], bool], following: Following) -> Iterator[StepResult]:
        begin = time.perf_counter()
        inputs = InputBatch(plan, self._limits, self._buffers)
        self._pages.used(inputs.last_block)
        sampling = [
            SamplingRow(row.sampling, row.output_index, row.history, row.prompt_len)
            for row in plan.rows
            if row.sampling is not None
        ]
        requests = [row.request for row in plan.rows if row.sampling is not None]
        masks = [row.mask for row in plan.rows if row.sampling is not None]  # of the only step of their plan
        captured: CapturedSteps | None = None
        seq, recall, final = plan.seq, plan.seq, plan.seq + plan.max_steps - 1
        behind: Continuation | None = None
        while True:
            if seq == final and inputs.decodes and not recalled(recall):
                behind = following(final + 1)
            if behind is not None:
                self._extend(inputs, behind, requests, sampling)
            with torch.inference_mode():
                scores: list[TargetScores] = []
                if (graphs := self._program(inputs, plan)) is not None:
                    captured = captured or CapturedSteps(graphs)
                    if any(mask is not None for mask in masks) or not all(row.plain for row in sampling):
                        results = self._sample(captured.step(inputs, sampling).logits, requests, sampling, masks)
                    else:
                        over = (seq == final and behind is None) or recalled(recall)
                        more = [] if over else _going(requests, behind)
                        found = captured.tokens(inputs, sampling, more)
                        results = _accepted(found, requests, sampling)
                else:
                    batch, chosen = inputs.next()
                    done = self.decoder.forward(batch)
                    if seq == plan.seq:
                        scores = self._scores(done, plan)
                    results = []
                    if sampling:
                        results = self._sample(self.decoder.logits(done, chosen), requests, sampling, masks)
                    else:
                        self._finish()
            tokens = [result.token for result in results]
            running = [i for i in _going(requests, behind) if not sampling[i].finished_by(tokens[i])]
            ahead, ends = captured is not None and captured.ahead, seq == final
            last = (ends and behind is None) or not running or (recalled(recall) and not ahead)
            if last and ahead:
                self._finish()  # of rows that have ended: nobody's, but it is to be over
            yield StepResult(seq, results, last or ends, seconds=time.perf_counter() - begin, scores=scores)
            if last and behind is not None:
                raise StaleSlot(behind.seq)
            if last:
                return
            if behind is not None:
                recall, final, behind = behind.seq, final + behind.max_steps, None
            seq += 1
            begin = time.perf_counter()
            inputs.advance(tokens, running)
            if captured is not None:
                captured.keep(running)
            requests, sampling = [requests[i] for i in running], [sampling[i] for i in running]
            masks = [None] * len(running)

    def _extend(
        self, inputs: InputBatch, behind: Continuation, requests: Sequence[int], rows: Sequence[SamplingRow]
    ) -> None:
        """Tables for the steps behind the next one, which is the last before them."""
        blocks = dict(behind.rows)
        left = [row.sampling.max_tokens - row.output_index - 1 for row in rows]
        steps = [min(behind.max_steps, more) if r in blocks else 0 for r, more in zip(requests, left, strict=True)]
        inputs.extend(requests, [blocks.get(request, []) for request in requests], steps)
        self._pages.used(inputs.last_block)

    def _program(self, inputs: InputBatch, plan: StepPlan) -> DecodeGraphs | None:
        """Those that hold the next step, if there are any."""
        graphs = self.graphs
        if (
            graphs is None
            or not inputs.decodes
            or not graphs.fits(inputs.rows)
            or any(row.targets for row in plan.rows)
        ):
            return None
        return graphs

    def _finish(self) -> None:
        """Wait until all that was queued is in memory. Where tokens are fetched, they have waited for it already."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _scores(self, done: Step, plan: StepPlan) -> list[TargetScores]:
        """The log-probabilities of the rows' targets, from the logits of a few positions at a time."""
        found, first = list[TargetScores](), 0
        for row in plan.rows:
            scored: list[TokenLogprobs] = []
            for begin in range(0, len(row.targets), SCORED_AT_ONCE):
                targets = row.targets[begin : begin + SCORED_AT_ONCE]
                at = torch.arange(len(targets), device=self._device) + first + begin
                logits, counts = self.decoder.logits(done, at), [row.target_logprobs] * len(targets)
                scored += self._logprobs(logits, range(len(targets)), targets, counts)
            if any(math.isnan(score.logprob) for score in scored):
                raise NotFiniteError(row.request)
            if scored:
                found.append(TargetScores(row.request, scored))
            first += len(row.tokens)
        return found

    def _sample(
        self,
        logits: Tensor,
        requests: Sequence[int],
        rows: Sequence[SamplingRow],
        masks: Sequence[bytes | None],
    ) -> list[TokenResult]:
        """One token for each row of ``logits [R, vocab_size]``; the rows accept theirs."""

        def some(begin: int, end: int) -> list[int]:
            part = logits[begin:end]
            tokens = sample(part, rows[begin:end], self.kernels, masks[begin:end], self._sampled.put)
            _check(tokens, requests[begin:end])
            return tokens

        tokens = in_quanta(self._pacer, len(rows), SAMPLE_SECONDS * logits.shape[1], some)
        wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs >= 0]
        scores = dict[int, TokenLogprobs]()
        if wanted:
            counts = [rows[i].sampling.logprobs for i in wanted]
            found = self._logprobs(logits, wanted, [tokens[i] for i in wanted], counts)
            scores = dict(zip(wanted, found, strict=True))
        for row, token in zip(rows, tokens, strict=True):
            row.accept(token)
        return [
            TokenResult(request, token, scores.get(i))
            for i, (request, token) in enumerate(zip(requests, tokens, strict=True))
        ]

    def _logprobs(
        self, logits: Tensor, rows: Sequence[int], tokens: Sequence[int], counts: Sequence[int]
    ) -> list[TokenLogprobs]:
        """Of a token for each of these rows, by as many as a quantum holds: all of them where nobody paces."""
        all_rows = len(rows) == len(logits)

        def some(begin: int, end: int) -> list[TokenLogprobs]:
            part = logits[begin:end] if all_rows else logits[rows[begin:end]]  # a copy, so not of more
            return token_logprobs(part, tokens[begin:end], counts[begin:end])

        return in_quanta(self._pacer, len(rows), SCORE_SECONDS * logits.shape[1], some)


def _going(requests: Sequence[int], behind: Continuation | None) -> Sequence[int]:
    """Which of these rows may. Who is left out must not be written once more: its blocks are free after this step."""
    rows = {request for request, _ in behind.rows} if behind is not None else set(requests)
    return [i for i, request in enumerate(requests) if request in rows]


def _check(tokens: Sequence[int], requests: Sequence[int]) -> None:
    for request, token in zip(requests, tokens, strict=True):
        if token == NOT_FINITE:
            raise NotFiniteError(request)


def _accepted(tokens: Sequence[int], requests: Sequence[int], rows: Sequence[SamplingRow]) -> list[TokenResult]:
    """Of rows that are `plain`."""
    _check(tokens, requests)
    for row, token in zip(rows, tokens, strict=True):
        row.accept(token)
    return [TokenResult(request, token) for request, token in zip(requests, tokens, strict=True)]
