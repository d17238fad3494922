"""The part that asks the engine's kernels: are they right on this card, and how far from its memory's rate?

Right means: as their twins on the models' shapes (the gate of every worker), and as the twins in float64 on a decode
batch. The rate is that of the bytes that must be read; the yardstick is a copy on the same device, in the same run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.gpu.check.stage import Figures, Stage

from bench.gpu.models import CONTEXT, card

if TYPE_CHECKING:
    import torch

    from semipd_engine.kernels import Kernels

BLOCK = 16
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "num_hidden_layers": 1,
}
SMALL_LATENT = SMALL | {"num_key_value_heads": 4, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16}
SMALL_LATENT |= {"v_head_dim": 16, "moe_intermediate_size": 32}
BATCHES = (1, 16, 64)
WORST, WORST_FLOAT32 = 2e-2, 1e-5
"""Largest difference from float64: a result near one has so much rounding."""


def kernels(stage: Stage, figures: Figures) -> None:
    import torch

    from semipd_engine.kernels import choose
    from semipd_engine.model.device import set_precision
    from semipd_engine.worker.kernel_gate import gate_kernels

    dtype = torch.float32 if stage.dry else torch.bfloat16
    chosen = choose(stage.device.type, {"SEMIPD_KERNELS": "reference"} if stage.dry else os.environ)
    figures["kernels"] = chosen.why
    if chosen.shortfall:
        figures["slower than they could be"] = chosen.shortfall
    if not stage.dry:
        set_precision(dtype)
    gated: list[str] = []
    figures["as their twins, on the shapes of"] = gated
    dense = card("8B", **(SMALL if stage.dry else {}))
    latent = card("DeepSeek-V2-Lite", **(SMALL_LATENT if stage.dry else {}))
    for name, config in (("8B", dense), ("DeepSeek-V2-Lite", latent)):
        gate_kernels(chosen, config, dtype, stage.device, BLOCK)
        gated.append(name)
    copied = _copy(stage)
    figures["copy, GB/s"] = round(copied / 1e9, 1)
    table: list[dict[str, Any]] = []
    figures["decode attention"] = table
    sizes = (dense.num_heads, dense.num_kv_heads, dense.head_dim)
    for batch in BATCHES[:1] if stage.dry else BATCHES:
        error, seconds, nbytes = _decode(chosen, stage, dtype, batch, 40 if stage.dry else CONTEXT, *sizes)
        table.append(
            {
                "sequences": batch,
                "error against float64": f"{error:.1e}",
                "us": round(seconds * 1e6, 1),
                "GB/s": round(nbytes / seconds / 1e9, 1),
                "of a copy": round(nbytes / seconds / copied, 2),
            }
        )
        assert error <= (WORST_FLOAT32 if stage.dry else WORST), f"attention differs from float64: {table[-1]}"


def _decode(
    chosen: Kernels,
    stage: Stage,
    dtype: torch.dtype,
    sequences: int,
    positions: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
) -> tuple[float, float, int]:
    """Largest error against float64, seconds of a call, bytes of keys and values."""
    import torch

    from semipd_engine.kernels import ReferenceKernels

    blocks, generator = -(-positions // BLOCK), torch.Generator(stage.device).manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=stage.device).to(dtype)

    q, cache = normal(sequences, heads, head_dim), (sequences * blocks, BLOCK, kv_heads * head_dim)
    keys, values = normal(*cache), normal(*cache)
    order = torch.randperm(sequences * blocks, generator=generator, device=stage.device)
    paging = (
        order.to(torch.int32).view(sequences, blocks),
        torch.full((sequences,), positions, dtype=torch.int32, device=stage.device),
        torch.arange(sequences + 1, dtype=torch.int32, device=stage.device),
    )
    out, right = torch.zeros_like(q), torch.zeros(q.shape, dtype=torch.float64, device=stage.device)
    chosen.paged_attention(q, keys, values, *paging, head_dim**-0.5, out)
    wide, wide_keys, wide_values = (tensor.double() for tensor in (q, keys, values))
    ReferenceKernels().paged_attention(wide, wide_keys, wide_values, *paging, head_dim**-0.5, right)
    error = float((out.double() - right).abs().max())
    seconds = _seconds(stage, lambda: chosen.paged_attention(q, keys, values, *paging, head_dim**-0.5, out))
    return error, seconds, 2 * sequences * positions * kv_heads * head_dim * dtype.itemsize


def _copy(stage: Stage) -> float:
    """Bytes per second, read and written."""
    import torch

    source = torch.ones((1 << 20) if stage.dry else (1 << 28), dtype=torch.float32, device=stage.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(stage, lambda: target.copy_(source))


def _seconds(stage: Stage, call: Callable[[], object]) -> float:
    """Of one call, the median of runs of many."""
    import torch

    calls, runs = (2, 3) if stage.dry else (50, 5)
    found = []
    for _ in range(runs):
        if not stage.dry:
            torch.cuda.synchronize()
        began = time.monotonic()
        for _ in range(calls):
            call()
        if not stage.dry:
            torch.cuda.synchronize()
        found.append((time.monotonic() - began) / calls)
    return sorted(found)[runs // 2]
