"""First steps of a worker before it serves: libraries load, handles and workspaces are made, and its numbers are sane.

It writes into a KV pool of its own: no block of the shared one is free for it. Knows nothing of devices.
"""

from __future__ import annotations

import math

import torch
from msgspec.structs import replace

from semipd_engine.cards.config import ModelConfig
from semipd_engine.ipc.steps import Row, StepPlan, TokenResult
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.kernels import Kernels
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.memory.layout import KVLayout
from semipd_engine.memory.region import Region
from semipd_engine.pacing.quantum import Unpaced
from semipd_engine.sampling.sampler import SamplingRow, settings
from semipd_engine.worker.decode_graphs import Capture, DecodeGraphs, wrong_graphs
from semipd_engine.worker.input_batch import InputBatch, InputBuffers, Limits
from semipd_engine.worker.model_runner import ModelRunner
from semipd_engine.worker.servable import UnfitError

LENGTHS = (24, 40)
"""Prompts of two lengths: prefill with and without a prefix, decode with and without padding."""
STEPS = 2
GREEDY = Sampling(temperature=0, max_tokens=STEPS + 1, logprobs=0)


def warm_up(
    config: ModelConfig, arena: WeightArena, kernels: Kernels, layout: KVLayout, capture: Capture | None = None
) -> None:
    """A prompt in two chunks, another in one, and decode steps of both. With `capture` those again, as programs and
    kernel by kernel. Raises `UnfitError` (WarmUpFailed, WrongGraphs)."""
    norm = arena["norm"]
    blocks = -(-(max(LENGTHS) + STEPS + 1) // layout.block_size)
    num_blocks = blocks * len(LENGTHS)
    scratch = torch.zeros(layout.pool_bytes(num_blocks), dtype=torch.uint8, device=norm.device)
    kv = KVPool(layout, num_blocks, Region(scratch), norm.dtype)
    longest = max(LENGTHS) + STEPS + 1
    runner = ModelRunner(config, arena, kv, kernels, Unpaced(), longest)
    tables = [list(range(blocks * i, blocks * (i + 1))) for i in range(len(LENGTHS))]
    prompts = [[(7 * i + 3) % config.vocab_size for i in range(length)] for length in LENGTHS]
    half = len(prompts[0]) // 2

    def run(plan: StepPlan) -> list[TokenResult]:
        return [token for step in runner.execute(plan, lambda seq: False) for token in step.tokens]

    try:
        run(StepPlan(1, 1, [Row(0, prompts[0][:half], 0, tables[0])]))
        chunks = [
            Row(0, prompts[0][half:], half, tables[0], outputs="last", sampling=GREEDY),
            Row(1, prompts[1], 0, tables[1], outputs="last", sampling=GREEDY),
        ]
        results = run(StepPlan(2, 1, chunks))
        rows = [
            Row(i, [results[i].token], len(prompts[i]), tables[i], outputs="last", sampling=GREEDY, output_index=1)
            for i in range(len(LENGTHS))
        ]
        results += run(StepPlan(3, STEPS, rows))
    except Exception as error:
        raise UnfitError("WarmUpFailed", f"{type(error).__name__}: {error}") from error
    if not all(_sane(result) for result in results):
        raise UnfitError("WarmUpFailed", "the model gives no finite numbers on this worker")
    if capture is not None:
        # Tables as wide as those of the programs that serve, for which attention splits its positions.
        wide = max(longest, config.max_position_embeddings)
        _gate_graphs(runner, Limits(config.vocab_size, num_blocks, layout.block_size, wide), rows, norm.device, capture)


def _gate_graphs(runner: ModelRunner, limits: Limits, rows: list[Row], device: torch.device, capture: Capture) -> None:
    """Programs of one, two and four rows, the last with one row of padding, give the bits of their kernels: logits, and
    tokens, greedy and drawn."""
    graphs = DecodeGraphs(runner.decoder, runner.kernels, device, limits.most_blocks, capture, (1, 2, 4))
    buffers = InputBuffers(device)
    behind = replace(rows[0], start=rows[0].start + 1)
    try:
        for some in (rows[:1], rows, [*rows, behind]):
            with torch.inference_mode():
                drawn = [SamplingRow(replace(GREEDY, temperature=i % 2 * 0.8, seed=i), 1) for i, _ in enumerate(some)]
                if graphs.differs(InputBatch(StepPlan(4, 1, some), limits, buffers).arrays() | settings(drawn)):
                    raise wrong_graphs(
                        f"a captured decode step of {len(some)} rows gives other numbers than its kernels"
                    )
    except UnfitError:
        raise
    except Exception as error:
        raise wrong_graphs(f"a captured decode step does not run: {type(error).__name__}: {error}") from error


def _sane(result: TokenResult) -> bool:
    return result.logprobs is not None and math.isfinite(result.logprobs.logprob)
