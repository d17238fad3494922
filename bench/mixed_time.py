"""What a step takes that computes a part of a prompt and decodes rows, beside the best that it could.

At best the weights are read once and a chunk's products hide behind that: the longer of a decode step's fixed part and
the chunk alone, and what rows add. That is what `StepModel.mixed_seconds` says, and the factor over it is what
`StepProfile.mixed` assumes. One worker of one thread that nothing paces; ``--clock cpu`` counts CPU seconds of the
process, for a host that others use too. Alone and mixed steps take turns, and each figure is a median.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch

from bench.token_time import Alone, Clock
from semipd_engine.cards.registry import read_card
from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.kernels import choose
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.loader import load_weights
from semipd_engine.worker.model_runner import ModelRunner

BLOCK, ROUNDS = 16, 9
ROWS, CHUNKS = (1, 8), (64, 128, 256)
CONTEXT = 256
"""Tokens before each decode row; a chunk begins at the same position."""
GREEDY = Sampling(temperature=0, max_tokens=10_000)


class Worker:
    """Plays one step of so many decode rows and so many tokens of a prompt."""

    def __init__(self, model: Path, dtype: torch.dtype, threads: int, clock: Clock) -> None:
        self._clock, self._rng = clock, random.Random(0)
        config, kernels = read_card(model), choose("cpu")
        weights = load_weights(config, model, dtype, kernels, inherited=True)
        each, longest = -(-(CONTEXT + max(CHUNKS)) // BLOCK), config.max_position_embeddings
        kv = KVPool.create(config.kv_layout(BLOCK, dtype.itemsize), (max(ROWS) + 1) * each, dtype)
        self.runner = ModelRunner(config, weights, kv, kernels, Alone(), longest)
        self._tables = [list(range(i * each, (i + 1) * each)) for i in range(max(ROWS) + 1)]
        self.kernels, self._vocabulary = kernels.name, config.vocab_size
        torch.set_num_threads(threads)
        for number in range(max(ROWS) + 1):
            self._run([self._chunk(number, CONTEXT, 0)])

    def step(self, rows: int, chunk: int) -> float:
        """Seconds."""
        plan = [
            Row(i, [7], CONTEXT, table, outputs="last", sampling=GREEDY) for i, table in enumerate(self._tables[:rows])
        ]
        return self._run(plan + ([self._chunk(max(ROWS), chunk, CONTEXT)] if chunk else []))

    def _chunk(self, number: int, tokens: int, start: int) -> Row:
        return Row(number, self._rng.choices(range(self._vocabulary), k=tokens), start, self._tables[number])

    def _run(self, rows: list[Row]) -> float:
        began = self._clock()
        for _ in self.runner.execute(StepPlan(0, 1, rows), lambda seq: False):
            pass
        return self._clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    asked = parser.parse_args()
    clock = time.perf_counter if asked.clock == "wall" else time.process_time
    worker = Worker(asked.model, getattr(torch, asked.dtype), asked.threads, clock)
    cases = [(rows, chunk) for rows in (0, *ROWS) for chunk in (0, *CHUNKS) if rows or chunk]
    seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for case in cases:
            seconds[case].append(worker.step(*case))
    took = {case: statistics.median(found) for case, found in seconds.items()}
    few, many = min(ROWS), max(ROWS)
    row = (took[many, 0] - took[few, 0]) / (many - few)
    fixed = took[few, 0] - few * row
    print(f"kernels {worker.kernels}, {asked.dtype}, {asked.threads} threads, {asked.clock} clock")
    print(f"a decode step: {1e3 * fixed:.1f} ms and {1e3 * row:.2f} a row at a context of {CONTEXT}")
    for rows, chunk in cases:
        told = f"{rows} rows, {chunk} tokens of a prompt: {1e3 * took[rows, chunk]:.1f} ms"
        if rows and chunk:
            best = max(fixed, took[0, chunk]) + row * rows
            told += f"; at best {1e3 * best:.1f}: {took[rows, chunk] / best:.2f} times that"
        print(told)


if __name__ == "__main__":
    main()
