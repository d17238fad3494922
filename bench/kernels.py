"""Compiled kernels beside the machine's limits and beside torch (``make bench-kernels``; ``ARGS="--level avx512"``).

Ours and torch's turns alternate, medians of both are taken, and the ratio is theirs to ours. ``--clock cpu`` counts CPU
seconds of the process instead of wall time: for a host that others use too, with ``--threads 1``. Writes
``out/bench/kernels.json`` and ``.svg``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from bench.kernel_rates import chosen
from bench.usage import count, folder, guarded, threads
from semipd_engine.kernels import Kernels, PackedWeight, ReferenceKernels, cpu
from semipd_engine.usage import Parser

SHAPES = ((2048, 1024), (1024, 1024), (9728, 1024), (1024, 4864))
"""Output and input features of one layer of the 0.5 B model."""
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 16, 8, 64, 16
ROWS = (1, 8, 16, 64, 256, 512)
CONTEXTS = ((1, 512), (8, 512), (32, 512))
"""Sequences and positions of each."""


class Race:
    """Two ways to do the same work, in turns."""

    def __init__(self, clock: Callable[[], float], rounds: int) -> None:
        self._clock, self._rounds = clock, rounds

    def run(self, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
        """Median seconds of each."""
        seconds: tuple[list[float], list[float]] = ([], [])
        for turn in range(-1, self._rounds):
            for times, work in zip(seconds, (ours, theirs), strict=True):
                begin = self._clock()
                work()
                if turn >= 0:  # the first is a warm-up
                    times.append(self._clock() - begin)
        return statistics.median(seconds[0]), statistics.median(seconds[1])


def packed(kernels: Kernels, weight: Tensor) -> PackedWeight:
    layout = kernels.layout(weight.shape[0], weight.shape[1], weight.dtype)
    result = PackedWeight(torch.zeros(layout.shape, dtype=weight.dtype), layout)
    kernels.pack_rows(result, 0, weight)
    return result


def linear(kernels: Kernels, race: Race, layers: int) -> list[dict[str, Any]]:
    """All products of `layers` layers, more weights than the caches hold."""
    weights = [torch.randn(shape).bfloat16() for _ in range(layers) for shape in SHAPES]
    ours = [packed(kernels, weight) for weight in weights]
    numbers = sum(weight.numel() for weight in weights)
    results = []
    for rows in tqdm(ROWS, desc="linear", unit="size"):
        x = {inner: torch.randn(rows, inner).bfloat16() for _, inner in SHAPES}
        out = {columns: torch.empty(rows, columns, dtype=torch.bfloat16) for columns, _ in SHAPES}

        def run_ours(x: dict[int, Tensor] = x, out: dict[int, Tensor] = out) -> None:
            for weight in ours:
                kernels.linear(x[weight.in_features], weight, None, out[weight.out_features])

        def run_torch(x: dict[int, Tensor] = x) -> None:
            for weight in weights:
                F.linear(x[weight.shape[1]], weight)

        mine, theirs = race.run(run_ours, run_torch)
        rates = {"gb_per_s": 2 * numbers / mine / 1e9, "gflop_per_s": 2 * numbers * rows / mine / 1e9}
        results.append({"rows": rows, "seconds": mine, "torch_seconds": theirs, "ratio": theirs / mine, **rates})
    return results


def attention(kernels: Kernels, race: Race, layers: int) -> list[dict[str, Any]]:
    """Decode rows over a scattered cache; torch gathers the blocks and calls scaled_dot_product_attention."""
    twins, results = ReferenceKernels(), []
    for sequences, context in tqdm(CONTEXTS, desc="attention", unit="batch"):
        blocks = sequences * context // BLOCK_SIZE
        shape = (layers, blocks, BLOCK_SIZE, KV_HEADS * HEAD_DIM)
        keys, values = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
        tables = torch.randperm(blocks, dtype=torch.int32).view(sequences, -1)
        lengths = torch.full((sequences,), context, dtype=torch.int32)
        starts = torch.arange(sequences + 1, dtype=torch.int32)
        q = torch.randn(sequences, HEADS, HEAD_DIM).bfloat16()
        outs = torch.empty_like(q), torch.empty_like(q)

        batch = (tables, lengths, starts)

        def run(
            by: Kernels, q: Tensor, keys: Tensor, values: Tensor, batch: tuple[Tensor, Tensor, Tensor], out: Tensor
        ) -> None:
            for key, value in zip(keys, values, strict=True):
                by.paged_attention(q, key, value, *batch, HEAD_DIM**-0.5, out)

        mine, theirs = race.run(
            partial(run, kernels, q, keys, values, batch, outs[0]),
            partial(run, twins, q, keys, values, batch, outs[1]),
        )
        torch.testing.assert_close(*outs, rtol=2e-2, atol=2e-2)
        row = {"sequences": sequences, "context": context, "seconds": mine, "torch_seconds": theirs}
        results.append({**row, "ratio": theirs / mine, "gb_per_s": 4 * keys.numel() / mine / 1e9})
    return results


def read_bandwidth(race: Race) -> float:
    """GB/s of a sum over 1 GiB, the machine's limit for few rows."""
    memory = torch.ones(1 << 28)
    seconds, _ = race.run(memory.sum, lambda: None)
    return memory.nbytes / seconds / 1e9


def plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    left.bar([str(row["rows"]) for row in report["linear"]], [row["ratio"] for row in report["linear"]])
    left.set(title="linear, bfloat16", xlabel="rows", ylabel="torch's seconds / ours")
    names = [f"{row['sequences']} × {row['context']}" for row in report["attention"]]
    right.bar(names, [row["ratio"] for row in report["attention"]])
    right.set(title="paged decode attention", xlabel="sequences × positions")
    for axes in (left, right):
        axes.axhline(1, color="black", linewidth=0.8)
    figure.suptitle(f"{report['kernels']}, {report['threads']} threads, read {report['read_gb_per_s']:.0f} GB/s")
    figure.savefig(path)


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="bench.kernels", description=__doc__)
    levels = ("auto", *cpu.runnable(), "reference")
    parser.add_argument("--level", choices=levels, default="auto", help="as SEMIPD_KERNELS; this machine can run these")
    parser.add_argument("--threads", type=threads, default=torch.get_num_threads())
    parser.add_argument("--layers", type=count, default=6)
    parser.add_argument("--rounds", type=count, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=folder, default="out/bench", help="folder of kernels.json and .svg")
    options = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(options))


def carried_out(options: argparse.Namespace) -> int:
    """Raises `RefusedError`."""
    torch.set_num_threads(options.threads)
    kernels = chosen(options.level)
    asked = {name: value for name, value in vars(options).items() if name != "out"}
    race = Race(time.perf_counter if options.clock == "wall" else time.process_time, options.rounds)
    report: dict[str, Any] = {"kernels": kernels.name, **asked, "read_gb_per_s": read_bandwidth(race)}
    report["linear"] = linear(kernels, race, options.layers)
    report["attention"] = attention(kernels, race, 4 * options.layers)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "kernels.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(report, options.out / "kernels.svg")
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
