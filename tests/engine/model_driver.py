"""Drives a `ModelRunner` as a core would: scattered blocks, chunked prompts, mixed batches, plans of several steps.

The other side of the comparison is `e2e.lib.reference`.
"""

from __future__ import annotations

import os
import random
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from e2e.lib.reference import reference
from semipd_engine.cards.registry import read_card
from semipd_engine.ipc.steps import Row, StepPlan, StepResult, TokenResult
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.kernels import Kernels, choose
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.checkpoint import settle
from semipd_engine.model.device import CPU, set_precision
from semipd_engine.model.loader import load_weights
from semipd_engine.pacing.quantum import Pacer, Unpaced
from semipd_engine.worker.model_runner import ModelRunner

BLOCK_SIZE = 16
torch.set_num_threads(1)  # OpenMP threads that spin for a busy CPU make a test fifty times slower


@dataclass
class Generation:
    """One request: its prompt, its blocks, and what it has produced."""

    prompt: list[int]
    sampling: Sampling
    block_table: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    computed: int = 0

    def take(self, result: TokenResult) -> None:
        self.tokens.append(result.token)
        if result.logprobs is not None:
            self.logprobs.append(result.logprobs.logprob)

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.sampling.max_tokens or (
            bool(self.tokens) and self.tokens[-1] in self.sampling.stop_token_ids
        )

    @property
    def history(self) -> list[int]:
        return [*self.prompt, *self.tokens] if self.sampling.needs_history else []


class Driver:
    def __init__(
        self,
        model: Path,
        dtype: torch.dtype = torch.float32,
        pacer: Pacer | None = None,
        num_blocks: int = 512,
        seed: int = 0,
        device: torch.device = CPU,
        kernels: Kernels | None = None,
    ) -> None:
        kernels = kernels or choose(device.type)
        if device.type == "cuda":
            set_precision(dtype)
        self.config = settle(read_card(model), model)
        self.arena = load_weights(self.config, model, dtype, kernels, device=device)
        self.kv = KVPool.create(self.config.kv_layout(BLOCK_SIZE, dtype.itemsize), num_blocks, dtype, device)
        for fd in (*self.kv.region.fds, *self.arena.region.fds):
            weakref.finalize(self, os.close, fd)  # an open descriptor would keep the memory when the mappings are gone
        for layer in range(self.config.num_layers):
            for view in self.kv.layer(layer):
                view.fill_(float("nan"))  # what a stranger left behind must not be read
        longest = self.config.max_position_embeddings
        self.runner = ModelRunner(self.config, self.arena, self.kv, kernels, pacer or Unpaced(), longest)
        self._free = list(range(num_blocks))
        random.Random(seed).shuffle(self._free)
        self._seq = 0

    def request(self, prompt: Sequence[int], sampling: Sampling, shared_blocks: Sequence[int] = ()) -> Generation:
        """`shared_blocks`: full blocks of another request's equal prefix, which are then not computed again."""
        needed = -(-(len(prompt) + sampling.max_tokens) // BLOCK_SIZE) - len(shared_blocks)
        table = [*shared_blocks, *(self._free.pop() for _ in range(needed))]
        return Generation(list(prompt), sampling, table, computed=len(shared_blocks) * BLOCK_SIZE)

    def prefill(self, requests: Sequence[Generation], chunk_tokens: int = 1 << 20) -> None:
        """All prompts to their first token; each plan fills its token budget from several prompts."""
        while waiting := [r for r in requests if r.computed < len(r.prompt)]:
            rows, budget = [], chunk_tokens
            for request in waiting:
                if budget == 0:
                    break
                size = min(budget, len(request.prompt) - request.computed)
                rows.append(self._row(request, size))
                budget -= size
            self._execute(waiting, rows, 1)

    def decode(self, requests: Sequence[Generation], max_steps: int) -> list[StepResult]:
        running = [r for r in requests if not r.done]
        return self._execute(running, [self._row(r, 1) for r in running], max_steps)

    def step(self, requests: Sequence[Generation], sizes: Sequence[int]) -> None:
        """One step with so many tokens of each request, whatever it is at."""
        self._execute(requests, [self._row(r, size) for r, size in zip(requests, sizes, strict=True)], 1)

    def generate(self, requests: Sequence[Generation], chunk_tokens: int = 1 << 20, max_steps: int = 4) -> None:
        """Staggered: each request joins the decode batch as soon as its prompt is done."""
        active: list[Generation] = []
        for request in requests:
            self.prefill([request], chunk_tokens)
            active.append(request)
            if any(not r.done for r in active):
                self.decode(active, 1)
        while any(not r.done for r in active):
            self.decode(active, max_steps)

    def _row(self, request: Generation, size: int) -> Row:
        """The next `size` tokens; the one that reaches the end of what is known samples."""
        known = [*request.prompt, *request.tokens]
        begin, end = request.computed, request.computed + size
        samples = end == len(known)
        request.computed = end
        return Row(
            request=id(request),
            tokens=known[begin:end],
            start=begin,
            block_table=request.block_table,
            outputs="last" if samples else "none",
            sampling=request.sampling if samples else None,
            output_index=len(request.tokens),
            history=request.history,
            prompt_len=len(request.prompt),
        )

    def _execute(self, requests: Sequence[Generation], rows: list[Row], max_steps: int) -> list[StepResult]:
        by_id = {id(r): r for r in requests}
        plan = StepPlan(self._next(max_steps), max_steps, rows)
        results = list(self.runner.execute(plan, lambda seq: False))
        for step in results:
            for result in step.tokens:
                by_id[result.request].take(result)
        for request in requests:
            if request.tokens:
                request.computed = len(request.prompt) + len(request.tokens) - 1
        return results

    def _next(self, steps: int) -> int:
        self._seq += steps
        return self._seq - steps


def greedy(max_tokens: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=max_tokens, logprobs=0)


@lru_cache(maxsize=8)
def tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer  # seconds that `gpu-check` need not wait

    return AutoTokenizer.from_pretrained(model)


def random_prompt(length: int, vocab_size: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, vocab_size) for _ in range(length)]


def assert_equal_to_reference(model: Path, requests: Sequence[Generation]) -> None:
    """Token for token, and each token's log-probability within 1e-4."""
    for request in requests:
        tokens, scores = reference(model).greedy(request.prompt, request.sampling.max_tokens)
        assert request.tokens == tokens, f"prompt of {len(request.prompt)} tokens"
        worst = max(abs(a - b) for a, b in zip(request.logprobs, scores, strict=True))
        assert worst < 1e-4, f"prompt of {len(request.prompt)} tokens: a logprob is off by {worst}"
