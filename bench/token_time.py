"""Where a token's time goes (``make bench-token``): one worker's step, beside the machine's limits.

Runs the 0.5 B model in bfloat16 as a worker that is alone does (no HTTP, no other process): decode of 1 and 8 rows at
a context of 512, and a prompt of 512 tokens. Then again with each stage carried out by itself and timed. In the same
run: how fast memory is read, and how fast torch multiplies; from them the least that a step could take. ``--clock cpu``
counts CPU seconds of the process instead of wall time: for a host that others use too, with ``--threads 1``.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import usage
from bench.usage import guarded, made, threads
from e2e.lib.models import random_model
from semipd_engine.cards.registry import read_card
from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.kernels import choose
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.cuts import StageLoop
from semipd_engine.model.loader import load_weights
from semipd_engine.model.stage import Stage, Step, Work
from semipd_engine.pacing.pacer import ALONE_SECONDS
from semipd_engine.usage import Parser
from semipd_engine.worker.model_runner import ModelRunner

CONTEXT, BLOCK, STEPS, SEQUENCES, REPEATS = 512, 16, 16, 8, 5
DTYPE = torch.bfloat16
GREEDY = Sampling(temperature=0, max_tokens=10_000)
Clock = Callable[[], float]


class Alone:
    """A phase that is alone, as `PhasePacer` paces it."""

    @contextmanager
    def quantum(self) -> Iterator[float]:
        yield ALONE_SECONDS


class Timed:
    """A stage that adds its time to its kind's. It is carried out by itself: nothing of it is recorded."""

    recordable = False

    def __init__(self, stage: Stage, seconds: dict[str, float], clock: Clock) -> None:
        self._stage, self._seconds, self._clock = stage, seconds, clock

    def units(self, step: Step) -> int:
        return self._stage.units(step)

    def work(self, step: Step) -> Work:
        return self._stage.work(step)

    def run(self, step: Step, begin: int, end: int) -> None:
        started = self._clock()
        self._stage.run(step, begin, end)
        self._seconds[type(self._stage).__name__] += self._clock() - started


def fastest(call: Callable[[], object], clock: Clock, times: int = 9) -> float:
    seconds = []
    for _ in range(times):
        started = clock()
        call()
        seconds.append(clock() - started)
    return min(seconds)


@dataclass(frozen=True)
class Limits:
    read: float
    """Bytes per second of all threads."""
    products: float
    """Multiply-adds per second of torch's bfloat16 product."""

    @classmethod
    def measure(cls, clock: Clock = time.perf_counter) -> Limits:
        memory = torch.ones(1 << 28, dtype=torch.float32)
        a, b = torch.randn(512, 1024).bfloat16(), torch.randn(8192, 1024).bfloat16()
        read = memory.nbytes / min(fastest(memory.sum, clock), fastest(memory.max, clock))
        return cls(read, a.numel() * b.shape[0] / fastest(lambda: torch.nn.functional.linear(a, b), clock))


class Bench:
    def __init__(self, model: Path, threads: int, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        torch.set_num_threads(1)
        self._rng = random.Random(0)
        self.config, self.kernels = read_card(model), choose("cpu")
        weights = load_weights(self.config, model, DTYPE, self.kernels, inherited=True)
        embedding = self.config.vocab_size * self.config.hidden_size
        self.matrices = sum(entry.out_features * entry.in_features for entry in weights.manifest) - embedding
        each = -(-(CONTEXT + STEPS) // BLOCK)
        kv = KVPool.create(self.config.kv_layout(BLOCK, DTYPE.itemsize), SEQUENCES * each, DTYPE)
        longest = self.config.max_position_embeddings
        self.runner = ModelRunner(self.config, weights, kv, self.kernels, Alone(), longest)
        self._tables = [list(range(i * each, (i + 1) * each)) for i in range(SEQUENCES)]
        torch.set_num_threads(threads)

    def prompt(self, sequence: int = 0) -> float:
        tokens = [self._rng.randrange(self.config.vocab_size) for _ in range(CONTEXT)]
        return self._run([Row(sequence, tokens, 0, self._tables[sequence], outputs="last", sampling=GREEDY)], 1)

    def decode(self, rows: int) -> float:
        tables = self._tables[:rows]
        plan = [Row(i, [7], CONTEXT, table, outputs="last", sampling=GREEDY) for i, table in enumerate(tables)]
        return self._run(plan, STEPS)

    def _run(self, rows: list[Row], steps: int) -> float:
        """Median seconds of a step."""
        seconds, began = [], self._clock()
        for _ in self.runner.execute(StepPlan(0, steps, rows), lambda seq: False):
            seconds.append(self._clock() - began)
            began = self._clock()
        return statistics.median(seconds)

    def time_stages(self) -> dict[str, float]:
        """From now on: seconds by kind of stage."""
        seconds: dict[str, float] = defaultdict(float)
        decoder = self.runner.decoder
        decoder.body, decoder.head = (
            StageLoop(
                [Timed(stage, seconds, self._clock) for stage in loop.stages],
                self.kernels,
                Alone(),
                self.kernels.rates(DTYPE, self.config.head_dim),
            )
            for loop in (decoder.body, decoder.head)
        )
        return seconds


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="bench.token_time", description=__doc__)
    parser.add_argument("--model", type=usage.model, help="folder of another model")
    parser.add_argument("--threads", type=threads, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(arguments))


def carried_out(arguments: argparse.Namespace) -> int:
    """Raises `RefusedError`."""
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    model = arguments.model or made("the random model", lambda: random_model("llama", "small"))
    bench = Bench(model, arguments.threads, clock)
    cases: list[tuple[str, Callable[[], float], int, int]] = [
        ("decode, 1 row", lambda: bench.decode(1), 1, STEPS),
        ("decode, 8 rows", lambda: bench.decode(8), 8, STEPS),
        ("prompt of 512", bench.prompt, CONTEXT, 1),
    ]
    for sequence in range(SEQUENCES):
        bench.prompt(sequence)
    for _, work, _, _ in cases:
        work()
    limits = Limits.measure(clock)
    whole = {name: min(work() for _ in range(REPEATS)) for name, work, _, _ in cases}
    seconds = bench.time_stages()
    print(f"kernels {bench.kernels.name}, {arguments.threads} threads, {arguments.clock} clock")
    print(f"read {limits.read / 1e9:.0f} GB/s, bfloat16 product {limits.products / 1e9:.0f} G multiply-adds/s")
    for name, work, tokens, steps in cases:
        work()
        seconds.clear()
        apart = work()
        reading, multiplying = bench.matrices * DTYPE.itemsize / limits.read, bench.matrices * tokens / limits.products
        parts = {kind: spent / steps for kind, spent in sorted(seconds.items(), key=lambda item: -item[1])}
        parts["rest"] = apart - sum(parts.values())
        print(
            f"{name}: {whole[name] * 1e3:.1f} ms a step, {tokens / whole[name]:.1f} tok/s; "
            f"to read the matrices {reading * 1e3:.1f} ms, to multiply {multiplying * 1e3:.1f}"
        )
        print("  apart: " + ", ".join(f"{kind} {spent * 1e3:.2f}" for kind, spent in parts.items()) + " ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
