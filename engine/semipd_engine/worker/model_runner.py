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
from semipd_engine.ipc.steps import StepPlan, StepResult, TargetScores, TokenResult
from semipd_engine.ipc.tokens import TokenLogprobs
from semipd_engine.kernels import Kernels
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.decoder import Decoder
from semipd_engine.model.stage import Step
from semipd_engine.pacing.quantum import Pacer
from semipd_engine.sampling.sampler import SamplingRow, sample, token_logprobs
from semipd_engine.worker.input_batch import InputBatch, InputBuffers, Limits, allowed_tokens

SCORED_AT_ONCE = 64
"""Positions of a prompt: their logits are as wide as the vocabulary."""


class NotFiniteError(Exception):
    """The model gave no number for a token: NaN in its weights, or a dtype that its activations overflow."""

    def __init__(self, request: int) -> None:
        super().__init__("the model gives NaN or infinity for this request; check its weights and the dtype")
        self.request = request


class ModelRunner:
    def __init__(
        self,
        config: ModelConfig,
        weights: WeightArena,
        kv: KVPool,
        kernels: Kernels,
        pacer: Pacer,
        max_model_len: int,
    ) -> None:
        """`weights` are named as in `weight_specs`, in the formats of `kernels`, of `kv.dtype`. Copies nothing."""
        self._device = weights.region.data.device
        self._kernels = kernels
        self._buffers = InputBuffers(self._device)
        self._pacer = pacer
        self.decoder = Decoder(config, weights, kv, kernels, pacer)
        self._limits = Limits(config.vocab_size, kv.num_blocks, kv.block_size, max_model_len)

    def execute(self, plan: StepPlan, recalled: Callable[[int], bool]) -> Iterator[StepResult]:
        """Yield one result after each step. Ends after `max_steps`, when all rows have finished, or after the step in
        which ``recalled(plan.seq)`` became true. Raises `PlanError` before the first step."""
        begin = time.perf_counter()
        inputs = InputBatch(plan, self._limits, self._buffers)
        sampling = [
            SamplingRow(row.sampling, row.output_index, row.history, row.prompt_len)
            for row in plan.rows
            if row.sampling is not None
        ]
        requests = [row.request for row in plan.rows if row.sampling is not None]
        masks = self._masks(plan)
        for step in range(plan.max_steps):
            with torch.inference_mode():
                batch, chosen = inputs.next()
                done = self.decoder.forward(batch)
                scores = self._scores(done, plan) if step == 0 else []
                if sampling:
                    results = self._sample(self.decoder.logits(done, chosen), requests, sampling, masks)
                else:
                    results = []
                    self._finish()
            tokens = [result.token for result in results]
            running = [i for i, row in enumerate(sampling) if not row.finished_by(tokens[i])]
            last = step + 1 == plan.max_steps or not running or recalled(plan.seq)
            yield StepResult(plan.seq + step, results, last, seconds=time.perf_counter() - begin, scores=scores)
            if last:
                return
            begin = time.perf_counter()
            inputs.advance(tokens, running)
            requests, sampling = [requests[i] for i in running], [sampling[i] for i in running]

    def _finish(self) -> None:
        """Wait until all that was queued is in memory. Where tokens are fetched, they have waited for it already."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _scores(self, done: Step, plan: StepPlan) -> list[TargetScores]:
        """The log-probabilities of the rows' targets; the logits of a few positions at a time, of which each is a
        quantum: they are as wide as the vocabulary."""
        found, first = list[TargetScores](), 0
        for row in plan.rows:
            scored: list[TokenLogprobs] = []
            for begin in range(0, len(row.targets), SCORED_AT_ONCE):
                targets = row.targets[begin : begin + SCORED_AT_ONCE]
                at = torch.arange(len(targets), device=self._device) + first + begin
                for logits, target in zip(self.decoder.logits(done, at), targets, strict=True):
                    with self._pacer.quantum():
                        if not math.isfinite(float(logits.amax())):  # NaN, if one is among them
                            raise NotFiniteError(row.request)
                        scored.append(token_logprobs(logits, target, row.target_logprobs))
            if scored:
                found.append(TargetScores(row.request, scored))
            first += len(row.tokens)
        return found

    def _masks(self, plan: StepPlan) -> list[Tensor | None] | None:
        """Of the rows that sample; None if no row has a mask. They hold for the only step of their plan."""
        if not any(row.mask for row in plan.rows):
            return None
        return [
            None if row.mask is None else allowed_tokens(row.mask, self._limits.vocab_size).to(self._device)
            for row in plan.rows
            if row.sampling is not None
        ]

    def _sample(
        self,
        logits: Tensor,
        requests: Sequence[int],
        rows: Sequence[SamplingRow],
        masks: Sequence[Tensor | None] | None,
    ) -> list[TokenResult]:
        """One token for each row of ``logits [R, vocab_size]``; the rows accept theirs."""
        with self._pacer.quantum():
            tokens = sample(logits, rows, self._kernels, masks)
            largest = logits.amax(dim=-1).tolist()  # NaN, if one is among them
            for request, number in zip(requests, largest, strict=True):
                if not math.isfinite(number):  # of the raw logits: no bias and no mask is in them
                    raise NotFiniteError(request)
        results = []
        for request, row, token, one in zip(requests, rows, tokens, logits, strict=True):
            score = None
            if row.sampling.logprobs >= 0:
                with self._pacer.quantum():
                    score = token_logprobs(one, token, row.sampling.logprobs)
            results.append(TokenResult(request, token, score))
            row.accept(token)
        return results
