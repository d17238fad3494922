"""A step that computes a part of a prompt and decodes rows, beside the best that it could (``make bench-mixed``).

At best the weights are read once and a chunk's products hide behind that: the longer of a decode step's fixed part and
the chunk alone, and what rows add. That is what `StepModel.mixed_seconds` says, and the factor over it is what
`StepProfile.mixed` assumes. One worker of one thread that nothing paces; ``--clock cpu`` counts CPU seconds of the
process, for a host that others use too. Alone and mixed steps take turns, and each figure is a median. Writes
``out/bench/mixed_time.json`` and ``.svg``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import usage
from bench.cpu.identity import commit, machine, versions
from bench.token_time import Alone, Clock
from bench.usage import count, folder, guarded, made, threads
from e2e.lib.models import smollm2
from semipd_agent.slo.step_model import StepProfile
from semipd_engine.cards.registry import read_card
from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.kernels import choose
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.loader import load_weights
from semipd_engine.usage import Parser
from semipd_engine.worker.model_runner import ModelRunner

BLOCK = 16
ROWS, CHUNKS = (1, 8), (64, 128, 256)
CASES = [(rows, chunk) for rows in (0, *ROWS) for chunk in (0, *CHUNKS) if rows or chunk]
"""Decode rows of a step, and its tokens of a prompt."""
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


def measured(worker: Worker, rounds: int) -> dict[tuple[int, int], list[float]]:
    """Seconds of each case's step, the cases by turns."""
    seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    for _ in tqdm(range(rounds), desc="mixed", unit="round", disable=not sys.stderr.isatty()):
        for case in CASES:
            seconds[case].append(worker.step(*case))
    return seconds


def figures(seconds: Mapping[tuple[int, int], Sequence[float]]) -> dict[str, Any]:
    """What a decode step's parts take, and of each case what it took and, where it is mixed, what it could at best."""
    took = {case: statistics.median(found) for case, found in seconds.items()}
    few, many = min(ROWS), max(ROWS)
    row = (took[many, 0] - took[few, 0]) / (many - few)
    fixed = took[few, 0] - few * row
    steps = []
    for rows, chunk in CASES:
        told: dict[str, Any] = {"rows": rows, "prompt_tokens": chunk, "ms": _ms(took[rows, chunk])}
        if rows and chunk:
            best = max(fixed, took[0, chunk]) + row * rows
            told |= {"best_ms": _ms(best), "times_best": round(took[rows, chunk] / best, 3)}
        steps.append(told | {"each_ms": [_ms(one) for one in seconds[rows, chunk]]})
    return {"fixed_ms": _ms(fixed), "row_ms": _ms(row), "steps": steps}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def sentences(found: Mapping[str, Any]) -> list[str]:
    lines = [f"a decode step: {found['fixed_ms']:.1f} ms and {found['row_ms']:.2f} a row at a context of {CONTEXT}"]
    for step in found["steps"]:
        told = f"{step['rows']} rows, {step['prompt_tokens']} tokens of a prompt: {step['ms']:.1f} ms"
        if "best_ms" in step:
            told += f"; at best {step['best_ms']:.1f}: {step['times_best']:.2f} times that"
        lines.append(told)
    return lines


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Left: what mixed steps took and could at best. Right: the one over the other, beside what is assumed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (took, over) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for colour, rows in zip(("tab:blue", "tab:orange"), ROWS, strict=True):
        mine = [step for step in found["steps"] if step["rows"] == rows and step["prompt_tokens"]]
        tokens = [step["prompt_tokens"] for step in mine]
        took.plot(tokens, [step["ms"] for step in mine], "o-", color=colour, label=f"{rows} rows")
        took.plot(tokens, [step["best_ms"] for step in mine], "--", color=colour, label=f"{rows} rows, at best")
        over.plot(tokens, [step["times_best"] for step in mine], "o-", color=colour, label=f"{rows} rows")
    took.set(xlabel="tokens of a prompt in the step", ylabel="ms", ylim=(0, None))
    over.axhline(StepProfile.mixed, color="grey", linestyle=":", label="assumed where none was measured")
    over.set(xlabel="tokens of a prompt in the step", ylabel="times the best", ylim=(0, None))
    for axes in (took, over):
        axes.legend(fontsize=8)
    about = (
        f"{found['model']}, {found['kernels']}, {found['dtype']}, {found['threads']} threads, {found['clock']} clock"
    )
    figure.suptitle(about, fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="bench.mixed_time", description=__doc__, formatter_class=raw)
    parser.add_argument("model", type=usage.model, nargs="?", help="folder of a model; SmolLM2-135M by default")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=threads, default=1)
    parser.add_argument("--rounds", type=count, default=9)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=folder, default="out/bench", help="folder of mixed_time.json and .svg")
    asked = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(asked))


def carried_out(asked: argparse.Namespace) -> int:
    """Raises `RefusedError`."""
    clock = time.perf_counter if asked.clock == "wall" else time.process_time
    model: Path = asked.model or made("SmolLM2-135M", smollm2)
    worker = Worker(model, getattr(torch, asked.dtype), asked.threads, clock)
    found: dict[str, Any] = {"commit": commit(), "machine": machine(), "versions": versions()}
    found |= {"model": model.name, "kernels": worker.kernels, "dtype": asked.dtype, "threads": asked.threads}
    found |= {"clock": asked.clock, "rounds": asked.rounds, "context": CONTEXT}
    found |= figures(measured(worker, asked.rounds))
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "mixed_time.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, asked.out / "mixed_time.svg")
    print("\n".join(sentences(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
