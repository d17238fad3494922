"""Executes plans: one forward pass for each step, then sampling. Stateless between plans.

Knows nothing of processes, channels or the scheduler; the phase a worker serves is just which method gets called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.ipc.messages import DecodePlan, PrefillPlan, StepResult, TokenResult
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.errors import PlanError
from semipd_engine.model.quanta import Load, Quanta
from semipd_engine.model.rope import RotaryEmbedding
from semipd_engine.model.transformer import Decoder
from semipd_engine.pacing.quantum import Pacer
from semipd_engine.sampling.sampler import SamplingRow, logprobs, sample
from semipd_engine.worker.plan_rows import DecodeRows, Limits, on_device, prefill_batch


class ModelRunner:
    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        kv: KVPool,
        pacer: Pacer,
        max_model_len: int,
    ) -> None:
        """`weights` are named as in `weight_specs` (`WeightArena.tensors`), all of `kv.dtype`. Copies nothing."""
        embedding = weights["embedding"]
        self._device = embedding.device
        self._quanta = Quanta(pacer)
        self._decoder = Decoder(config, weights, kv, self._quanta)
        self._rotary = RotaryEmbedding(config.rope, config.head_dim, embedding.dtype, self._device)
        self._limits = Limits(config.vocab_size, kv.num_blocks, kv.block_size, max_model_len)

    def prefill(self, plan: PrefillPlan) -> StepResult:
        """Compute all chunks; a token for each chunk with `sampling`. Raises `PlanError`."""
        begin = time.perf_counter()
        if not plan.chunks:
            raise PlanError("the prefill plan has no chunks")
        with torch.inference_mode():
            token_ids, batch = prefill_batch(plan.chunks, self._limits, self._rotary, self._device)
            hidden = self._decoder.forward(token_ids, batch)
            requests, rows, last = [], [], []
            for chunk, segment in zip(plan.chunks, batch.segments, strict=True):
                if chunk.sampling is not None:
                    requests.append(chunk.request)
                    rows.append(SamplingRow(chunk.sampling, chunk.output_index, chunk.history, chunk.prompt_len))
                    last.append(segment.first + segment.rows - 1)
            if rows:
                chosen = hidden.index_select(0, on_device(np.array(last, np.int64), self._device))
                tokens = self._sample(chosen, requests, rows)
            else:
                tokens = []
                self._finish()
        return StepResult(plan.seq, tokens, last=True, seconds=time.perf_counter() - begin)

    def decode(self, plan: DecodePlan, recalled: Callable[[int], bool]) -> Iterator[StepResult]:
        """Yield one result after each step. Ends after `max_steps`, when all rows have finished, or after the step in
        which ``recalled(plan.seq)`` became true. Raises `PlanError` before the first step."""
        if not plan.rows or plan.max_steps < 1:
            raise PlanError("the decode plan has no rows or no steps")
        requests = [row.request for row in plan.rows]
        rows = [SamplingRow(row.sampling, row.output_index, row.history, row.prompt_len) for row in plan.rows]
        decode_rows = DecodeRows(plan.rows, plan.max_steps, self._limits, self._rotary, self._device)
        for step in range(plan.max_steps):
            begin = time.perf_counter()
            with torch.inference_mode():
                token_ids, batch = decode_rows.batch()
                results = self._sample(self._decoder.forward(token_ids, batch), requests, rows)
            tokens = [result.token for result in results]
            running = [i for i, row in enumerate(rows) if not row.finished_by(tokens[i])]
            last = step + 1 == plan.max_steps or not running or recalled(plan.seq)
            yield StepResult(plan.seq + step, results, last, seconds=time.perf_counter() - begin)
            if last:
                return
            decode_rows.advance(tokens, running)
            requests, rows = [requests[i] for i in running], [rows[i] for i in running]

    def _finish(self) -> None:
        """Wait until all that was queued is in memory. Where tokens are fetched, they have waited for it already."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _sample(self, hidden: Tensor, requests: Sequence[int], rows: Sequence[SamplingRow]) -> list[TokenResult]:
        """One token for each row of ``hidden [R, hidden_size]``; the rows accept theirs."""
        logits = self._decoder.logits(hidden)
        with self._quanta.quantum(Load(len(rows), pointwise=logits.numel())):
            tokens = sample(logits, rows)
            scores = logprobs(logits, rows, tokens)
        for row, token in zip(rows, tokens, strict=True):
            row.accept(token)
        return [TokenResult(*result) for result in zip(requests, tokens, scores, strict=True)]
