"""Is the estimator right where it can be asked? ``make bench-estimate``: predicted beside measured, on this CPU.

The machine's limits are measured in the same run, on matrices and heads that are not the model's: how fast our products
read at one row and at eight and compute at many, how fast attention scores, what a call costs that does nothing, how
long a token takes to be chosen. Then steps of the 0.5 B model are predicted by `bench.gpu.estimate`, and measured.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.gpu.estimate import Cost, Limits
from bench.gpu.step_trace import Witness
from bench.token_time import CONTEXT, DTYPE, GREEDY, STEPS, Alone, Bench
from bench.usage import folder, guarded, made, threads
from e2e.lib.models import random_model
from semipd_engine.kernels import Kernels, PackedWeight, Rates, choose
from semipd_engine.memory.shared import map_anonymous
from semipd_engine.model.cuts import StageLoop
from semipd_engine.model.stage import Stage, Step, Work
from semipd_engine.sampling.sampler import SamplingRow, sample
from semipd_engine.usage import Parser

SHAPE, MATRICES = (3072, 1536), 48
"""More than caches hold: 450 MB, which lie in huge pages as weights do."""
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 8, 4, 64, 16
REPEATS = 5


def typical(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of a call: the median."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def products(kernels: Kernels, rows: int) -> float:
    """Seconds of `rows` rows through all matrices."""
    weights = []
    for _ in range(MATRICES):
        layout = kernels.layout(*SHAPE, DTYPE)
        room = map_anonymous(math.prod(layout.shape) * DTYPE.itemsize)
        weight = PackedWeight(room.view(DTYPE).view(layout.shape), layout)
        kernels.pack_rows(weight, 0, torch.randn(SHAPE).to(DTYPE))
        weights.append(weight)
    x, out = torch.randn(rows, SHAPE[1]).to(DTYPE), torch.empty(rows, SHAPE[0], dtype=DTYPE)

    def run() -> None:
        for weight in weights:
            kernels.linear(x, weight, None, out)

    run()
    return typical(run)


def attention(kernels: Kernels, rows: int) -> float:
    """Multiply-adds per second of a prompt of so many rows."""
    blocks = -(-rows // BLOCK)
    q = torch.randn(rows, HEADS, HEAD_DIM).to(DTYPE)
    keys, values = (torch.randn(blocks, BLOCK, KV_HEADS * HEAD_DIM).to(DTYPE) for _ in range(2))
    tables = torch.arange(blocks, dtype=torch.int32)[None]
    lengths, starts = torch.tensor([rows], dtype=torch.int32), torch.tensor([0, rows], dtype=torch.int32)
    out = torch.empty_like(q)

    def run() -> None:
        kernels.paged_attention(q, keys, values, tables, lengths, starts, HEAD_DIM**-0.5, out)

    run()
    return rows * (rows + 1) * HEADS * HEAD_DIM / typical(run)


def smallest(kernels: Kernels) -> float:
    """Seconds of a call that has next to nothing to do."""
    x, weight, calls = torch.randn(1, 64).to(DTYPE), torch.ones(64, dtype=DTYPE), 200
    out = torch.empty_like(x)

    def run() -> None:
        for _ in range(calls):
            kernels.rms_norm(x, weight, 1e-6, out)

    return typical(run) / calls


def sampling(kernels: Kernels, rows: int, vocab: int) -> float:
    """Seconds to choose one token for each of so many rows: what a step does beside its stages."""
    logits, chosen = torch.randn(rows, vocab), [SamplingRow(GREEDY, 0) for _ in range(rows)]
    return typical(lambda: sample(logits, chosen, kernels))


CASES: dict[str, tuple[Callable[[Bench], float], int]] = {
    "decode, 1 row": (lambda bench: bench.decode(1), STEPS),
    "decode, 8 rows": (lambda bench: bench.decode(8), STEPS),
    f"prompt of {CONTEXT}": (lambda bench: bench.prompt(), 1),
}
"""How each is run, and steps of a run."""


def measured(bench: Bench) -> dict[str, float]:
    for work, _ in CASES.values():
        work(bench)
    return {name: statistics.median(work(bench) for _ in range(REPEATS)) for name, (work, _) in CASES.items()}


def costs(bench: Bench) -> dict[str, Cost]:
    noted: list[Work] = []

    def note(stage: Stage, step: Step, begin: int, end: int) -> None:
        if begin == 0:
            noted.append(stage.work(step))
        stage.run(step, begin, end)

    decoder, kernels = bench.runner.decoder, bench.kernels
    for name in ("body", "head"):
        loop: StageLoop = getattr(decoder, name)
        stages = [Witness(stage, note) for stage in loop.stages]
        setattr(decoder, name, StageLoop(stages, kernels, Alone(), kernels.rates(DTYPE, bench.config.head_dim)))
    found = {}
    for name, (work, steps) in CASES.items():
        noted.clear()
        work(bench)
        each = len(noted) // steps
        found[name] = Cost(noted[:each], each)
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="bench.gpu.cpu_check", description=__doc__)
    parser.add_argument("--threads", type=threads, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=folder, default="out/bench", help="folder of estimate.json")
    options = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(options.threads, options.out))


def carried_out(threads: int, out: Path) -> int:
    """Raises `RefusedError`."""
    model = made("the random model", lambda: random_model("llama", "small"))
    small, kernels = Bench(model, threads), choose("cpu")
    numbers = MATRICES * SHAPE[0] * SHAPE[1]
    score, many = attention(kernels, CONTEXT), CONTEXT * numbers / products(kernels, CONTEXT)
    read = {rows: 2 * numbers / products(kernels, rows) for rows in (1, 8)}
    beside = smallest(kernels)
    seconds = measured(small)
    rows = []
    for name, cost in costs(small).items():
        at_once = 8 if "8" in name else 1
        rates = Rates(read[at_once], many, many, score, score)
        limits = Limits(rates, beside, sampling(kernels, at_once, small.config.vocab_size), queued=False)
        predicted = limits.seconds(cost)
        error = predicted / seconds[name] - 1
        rows.append({"case": name, "predicted ms": predicted * 1e3, "measured ms": seconds[name] * 1e3, "error": error})
        print(f"{name}: predicted {predicted * 1e3:.1f} ms, measured {seconds[name] * 1e3:.1f} ms, {error:+.0%}")
    print(
        f"{kernels.name}, {threads} threads: {read[1] / 1e9:.1f} GB/s at one row, {read[8] / 1e9:.1f} at eight, ",
        end="",
    )
    print(f"{many / 1e9:.0f} G multiply-adds/s, attention {score / 1e9:.0f}, {beside * 1e6:.1f} us a stage")
    out.mkdir(parents=True, exist_ok=True)
    (out / "estimate.json").write_text(
        json.dumps({"kernels": kernels.name, "threads": threads, "rows": rows}, indent=1)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
