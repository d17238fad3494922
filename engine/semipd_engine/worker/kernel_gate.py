"""Do the GPU's own kernels compute here what their twins do? Asked on the model's own shapes before a worker serves.

A kernel may be compiled wrong for a card, or lean on what this card does otherwise: the result is a token that nobody
notices. So each is held against its readable twin, on the device and in the worker's own dtype; one that differs, or
does not compile, makes the worker unfit. Knows no plans and no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.kernels import Kernels, ReferenceKernels
from semipd_engine.worker.servable import UnfitError

WORST = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference, of a number's own size plus one: each side rounds once or twice."""
BLOCK_SIZE = 16
BLOCKS = 96
SEQUENCES = ((1, 1), (1, BLOCK_SIZE + 1), (1, 1100), (0, 5), (BLOCK_SIZE + 3, 3 * BLOCK_SIZE), (70, 70))
"""(new rows, positions): a first token, one behind a block's edge, a context long enough to be split, nobody, a chunk
behind a prefix, a whole prompt."""


class Check(NamedTuple):
    kernel: str
    run: Callable[[Kernels], tuple[Tensor, ...]]
    """Its results on fresh copies of the same inputs."""


def gate_kernels(kernels: Kernels, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raises `UnfitError` (WrongKernels) with the first kernel that differs. Twins need no proof."""
    if kernels.name == ReferenceKernels().name:
        return
    twins = ReferenceKernels()
    for check in _checks(config, dtype, device):
        try:
            got, want = check.run(kernels), check.run(twins)
        except Exception as error:
            raise _unfit(f"{check.kernel} failed: {type(error).__name__}: {error}") from error
        for mine, right in zip(got, want, strict=True):
            differs = (mine.double() - right.double()).abs() / (1 + right.double().abs())
            worst = float(differs.max()) if differs.numel() else 0.0
            if not worst <= WORST[dtype]:  # NaN is wrong, too
                raise _unfit(f"{check.kernel} differs from its twin by {worst:.2g} of a number's size")


def _unfit(what: str) -> UnfitError:
    return UnfitError("WrongKernels", f"{what} on this GPU; SEMIPD_KERNELS=reference serves without these kernels")


def _checks(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Iterator[Check]:
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    rows = sum(new for new, _ in SEQUENCES)
    x, weight, inner = normal(rows, config.hidden_size), normal(config.hidden_size), normal(rows, 2 * 1000)
    sums = normal(rows, config.hidden_size)

    def norm(kernels: Kernels) -> tuple[Tensor, ...]:
        out, residual = torch.empty_like(x), sums.clone()
        kernels.rms_norm(x.clone(), weight, 1e-5, out, residual)
        return out, residual

    def activation(kernels: Kernels) -> tuple[Tensor, ...]:
        out = torch.empty_like(inner[:, :1000])
        kernels.silu_mul(inner, out)
        return (out,)

    yield Check("rms_norm", norm)
    yield Check("silu_mul", activation)
    starts = torch.tensor([0, *torch.tensor(SEQUENCES)[:, 0].cumsum(0).tolist()], dtype=torch.int32, device=device)
    lengths = torch.tensor([length for _, length in SEQUENCES], dtype=torch.int32, device=device)
    tables = torch.randperm(BLOCKS, generator=generator, device=device).to(torch.int32)
    tables = tables[
        (torch.arange(BLOCKS, device=device) + torch.arange(len(SEQUENCES), device=device)[:, None]) % BLOCKS
    ]
    slots = torch.arange(rows, dtype=torch.int32, device=device) * 3 + 1
    slots[1] = -1
    latent = config.latent
    turned = latent.rope_dim if latent is not None else config.head_dim
    angles = torch.randn(rows, turned // 2, generator=generator, device=device) * 3
    cos, sin = angles.cos(), angles.sin()
    paging = (tables.contiguous(), lengths, starts)
    if latent is not None:
        heads, cache = config.num_heads, normal(BLOCKS, BLOCK_SIZE, latent.width)
        q, kv, norms = normal(rows, heads, latent.query_dim), normal(rows, latent.width), normal(latent.rank)
        absorbed = normal(rows, heads, latent.width)

        def write_latent(kernels: Kernels) -> tuple[Tensor, ...]:
            out, held = torch.zeros_like(absorbed), cache.clone()
            kernels.latent_rope_write(q.clone(), kv.clone(), cos, sin, slots, norms, 1e-6, held, out)
            return out, held

        def attend_latent(kernels: Kernels) -> tuple[Tensor, ...]:
            out = torch.zeros_like(absorbed[:, :, : latent.rank])
            kernels.latent_attention(absorbed, cache, *paging, latent.width**-0.5, out)
            return (out,)

        yield Check("latent_rope_write", write_latent)
        yield Check("latent_attention", attend_latent)
        return
    head_dim = config.head_dim
    keys, values = (normal(BLOCKS, BLOCK_SIZE, config.kv_width) for _ in range(2))
    qkv = normal(rows, config.q_width + 2 * config.kv_width)
    q_norm, k_norm = (normal(head_dim) if config.qk_norm else None for _ in range(2))

    def write(kernels: Kernels) -> tuple[Tensor, ...]:
        mine, caches = qkv.clone(), (keys.clone(), values.clone())
        kernels.qk_norm_rope_write_kv(mine, cos, sin, slots, *caches, head_dim, q_norm, k_norm, 1e-6)
        return mine[:, : config.q_width], *caches

    def attend(window: int) -> Callable[[Kernels], tuple[Tensor, ...]]:
        def run(kernels: Kernels) -> tuple[Tensor, ...]:
            q = qkv[:, : config.q_width].view(rows, -1, head_dim)
            out = torch.zeros(q.shape, dtype=dtype, device=device)
            kernels.paged_attention(q, keys, values, *paging, head_dim**-0.5, out, window=window)
            return (out,)

        return run

    yield Check("qk_norm_rope_write_kv", write)
    for window in sorted({0, *config.windows}):
        yield Check("paged_attention", attend(window))
