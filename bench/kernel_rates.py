"""How fast kernels are on one core, beside the table by which steps are cut (``python -m bench.kernel_rates``).

In bfloat16, by the CPU time of one thread, so that a host with other work may be used; the best of some rounds. What
the table says (`semipd_engine.kernels.rates`) should be below what is measured, or a piece takes more than its budget.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bench.usage import RefusedError, count, guarded
from semipd_engine.kernels import Kernels, KernelsError, PackedGroup, PackedWeight, choose, cpu
from semipd_engine.kernels.rates import RATES
from semipd_engine.usage import Parser

DTYPE = torch.bfloat16
ROWS, POSITIONS, BLOCK = 256, 512, 16
"""Of a chunk, what its last row sees, and positions of a block."""
Case = tuple[str, str, float, Callable[[], object]]
"""The rate it measures, in words, bytes or multiply-adds, and the work."""


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).to(DTYPE)


def group(kernels: Kernels, count: int, features: int, inner: int) -> PackedGroup:
    layout = kernels.layout(features, inner, DTYPE)
    return PackedGroup(torch.randn(count, *layout.shape).to(DTYPE), layout)


def products(kernels: Kernels) -> Iterator[Case]:
    many = group(kernels, 24, 4096, 1024)
    weights = [PackedWeight(each, many.layout) for each in many.data]
    for rate, rows in (("read", 1), ("products", ROWS)):
        x, out = normal(rows, 1024), normal(rows, 4096)

        def run(x: Tensor = x, out: Tensor = out) -> None:
            for weight in weights:
                kernels.linear(x, weight, None, out)

        work = many.data.nbytes if rate == "read" else rows * many.data.numel()
        yield rate, f"{rows} rows × [4096, 1024]", float(work), run


def gathered(kernels: Kernels) -> Iterator[Case]:
    experts, chosen = group(kernels, 32, 1536, 1024), 8
    x, out = normal(ROWS, 1024), normal(chosen * ROWS, 1536)
    taken = torch.rand(ROWS, 32).topk(chosen).indices.flatten()
    order = taken.argsort(stable=True).int()
    starts = torch.tensor([int((taken < e).sum()) for e in range(33)], dtype=torch.int32)
    work = float(chosen * ROWS * 1536 * 1024)
    words = f"{ROWS} rows, {chosen} of 32 experts [1536, 1024]"
    yield "gathered", words, work, lambda: kernels.grouped_linear(x, experts, out, order, starts)
    heads = group(kernels, 16, 512, 128)
    q, low = normal(16 * ROWS, 128), normal(16 * ROWS, 512)
    work = float(16 * ROWS * 512 * 128)
    yield "gathered", f"{ROWS} rows, 16 heads [512, 128]", work, lambda: kernels.grouped_linear(q, heads, low)


def attention(kernels: Kernels) -> Iterator[Case]:
    tables = torch.randperm(POSITIONS // BLOCK).int()[None]
    lengths, starts = torch.tensor([POSITIONS], dtype=torch.int32), torch.tensor([0, ROWS], dtype=torch.int32)
    seen = ROWS * POSITIONS - ROWS * (ROWS - 1) // 2
    for heads, kv_heads, dim in ((16, 8, 64), (32, 8, 128)):
        q, keys = normal(ROWS, heads, dim), normal(POSITIONS // BLOCK, BLOCK, kv_heads * dim)
        out, work = torch.empty_like(q), float(2 * seen * heads * dim)

        def run(q: Tensor = q, keys: Tensor = keys, out: Tensor = out) -> None:
            kernels.paged_attention(q, keys, keys, tables, lengths, starts, 0.1, out)

        yield "scores", f"{ROWS} rows, {heads} heads of {dim}, {kv_heads} KV heads", work, run
    for heads in (16, 128):
        q, cache = normal(ROWS, heads, 576), normal(POSITIONS // BLOCK, BLOCK, 576)
        low, work = normal(ROWS, heads, 512), float(seen * heads * (576 + 512))

        def attend(q: Tensor = q, cache: Tensor = cache, low: Tensor = low) -> None:
            kernels.latent_attention(q, cache, tables, lengths, starts, 0.1, low)

        yield "latent", f"{ROWS} rows, {heads} heads of 576", work, attend


def best_seconds(work: Callable[[], object], rounds: int) -> float:
    work()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def main(words: Sequence[str] | None = None) -> int:
    here = [*cpu.runnable(), "reference"]
    parser = Parser(prog="bench.kernel_rates", description=__doc__)
    parser.add_argument(
        "--levels", nargs="+", choices=here, default=here, help="of kernels; this machine can run these"
    )
    parser.add_argument("--rounds", type=count, default=5)
    options = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(options))


def chosen(level: str) -> Kernels:
    """Raises `RefusedError`: this tree has not built them."""
    try:
        return choose(environment={"SEMIPD_KERNELS": level})
    except KernelsError as problem:
        raise RefusedError(str(problem)) from problem


def carried_out(options: argparse.Namespace) -> int:
    """Raises `RefusedError`."""
    torch.set_num_threads(1)
    for level, kernels in [(level, chosen(level)) for level in options.levels]:  # all, before one is measured
        for part in (products, gathered, attention):
            for rate, words, work, run in part(kernels):
                measured, table = work / best_seconds(run, options.rounds), float(getattr(RATES[level], rate))
                line = f"{rate} {measured:.1e} a second, {measured / table:.1f} × the table"
                print(f"{level}, {words}: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
