"""Do the GPU's own kernels compute here what their twins do? Asked on the model's own shapes before a worker serves.

A kernel may be compiled wrong for a card, or lean on what this card does otherwise: the result is a token that nobody
notices. So each is held against its readable twin, on the device and in the worker's own dtype; one that differs, or
does not compile, makes the worker unfit. Knows no plans and no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from semipd_engine.cards.blocks import Routing
from semipd_engine.cards.config import ModelConfig
from semipd_engine.kernels import GatedGroupKernels, Kernels, PackedGroup, ReferenceKernels
from semipd_engine.worker.servable import UnfitError

WORST = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference, of a number's own size plus one: each side rounds once or twice."""
BLOCK_SIZE = 16
"""Of the pools of most; the batches' lengths are chosen for it."""
POSITIONS = 96 * BLOCK_SIZE
"""Of the pool in which the kernels are held against their twins."""
BATCHES = (
    ((1, 1), (1, BLOCK_SIZE + 1), (1, 1100), (0, 5), (BLOCK_SIZE + 3, 3 * BLOCK_SIZE), (70, 70)),
    ((BLOCK_SIZE + 3, 3 * BLOCK_SIZE), (70, 70)),
    ((1, 1100),),
    ((1, 1), (1, BLOCK_SIZE + 1), (0, 5), (1, 300)),
)
"""Of sequences of (new rows, positions): a first token, one behind a block's edge, a context long enough to be split,
nobody, a chunk behind a prefix, a whole prompt. Prompts and decode rows have tiles of their own, and contexts that are
split a kernel of their own: so both kinds come over long tables and over short ones."""


class Paging(NamedTuple):
    rows: int
    tables: Tensor
    lengths: Tensor
    starts: Tensor


class Check(NamedTuple):
    kernel: str
    run: Callable[[Kernels], tuple[Tensor, ...]]
    """Its results on fresh copies of the same inputs."""


def gate_kernels(
    kernels: Kernels, config: ModelConfig, dtype: torch.dtype, device: torch.device, block_size: int
) -> None:
    """Raises `UnfitError` (WrongKernels) with the first kernel that differs. Twins need no proof.

    `block_size`: of the worker's pool; kernels are compiled for it.
    """
    if kernels.name == ReferenceKernels().name:
        return
    twins = ReferenceKernels()
    for check in _checks(config, dtype, device, block_size):
        try:  # what is queued fails when its numbers are looked at
            worst = [_difference(*pair) for pair in zip(check.run(kernels), check.run(twins), strict=True)]
        except torch.OutOfMemoryError as error:  # no word on the kernels
            raise UnfitError("WarmUpFailed", f"{type(error).__name__}: {error}") from error
        except Exception as error:
            raise _unfit(f"{check.kernel} failed: {type(error).__name__}: {error}") from error
        for one in worst:
            if not one <= WORST[dtype]:  # NaN is wrong, too
                raise _unfit(f"{check.kernel} differs from its twin by {one:.2g} of a number's size")


def _difference(mine: Tensor, right: Tensor) -> float:
    """The largest, of a number's own size plus one."""
    differs = (mine.double() - right.double()).abs() / (1 + right.double().abs())
    return float(differs.max()) if differs.numel() else 0.0


def _unfit(what: str) -> UnfitError:
    return UnfitError("WrongKernels", f"{what} on this GPU; SEMIPD_KERNELS=reference serves without these kernels")


def _checks(config: ModelConfig, dtype: torch.dtype, device: torch.device, block_size: int) -> Iterator[Check]:
    blocks = -(-POSITIONS // block_size)
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    batches = [_paging(batch, blocks, block_size, generator) for batch in BATCHES]
    rows = max(batch.rows for batch in batches)
    x, weight, inner = (
        normal(rows, config.hidden_size),
        normal(config.hidden_size),
        normal(rows, 2 * config.intermediate_size),
    )
    sums = normal(rows, config.hidden_size)

    def norm(kernels: Kernels) -> tuple[Tensor, ...]:
        out, residual = torch.empty_like(x), sums.clone()
        kernels.rms_norm(x.clone(), weight, 1e-5, out, residual)
        return out, residual

    def activation(kernels: Kernels) -> tuple[Tensor, ...]:
        out = torch.empty_like(inner[:, : config.intermediate_size])
        kernels.silu_mul(inner, out)
        return (out,)

    yield Check("rms_norm", norm)
    yield Check("silu_mul", activation)
    yield Check("adjust", lambda kernels: (_adjusted(kernels, config.vocab_size, device),))
    yield Check("sample", lambda kernels: (_drawn(kernels, config.vocab_size, device),))
    if config.mixture is not None:
        inner_size = config.mixture.intermediate_size
        yield from _experts(config.mixture.routing, config.hidden_size, inner_size, normal, device)
    slots = torch.arange(rows, dtype=torch.int32, device=device) * 3 + 1
    slots[1] = -1
    latent = config.latent
    turned = latent.rope_dim if latent is not None else config.head_dim
    angles = torch.randn(rows, turned // 2, generator=generator, device=device) * 3
    cos, sin = angles.cos(), angles.sin()
    if latent is not None:
        heads, cache = config.num_heads, normal(blocks, block_size, latent.width)
        q, kv, norms = normal(rows, heads, latent.query_dim), normal(rows, latent.width), normal(latent.rank)
        absorbed = normal(rows, heads, latent.width)

        def write_latent(kernels: Kernels) -> tuple[Tensor, ...]:
            out, held = torch.zeros_like(absorbed), cache.clone()
            kernels.latent_rope_write(q.clone(), kv.clone(), cos, sin, slots, norms, 1e-6, held, out)
            return out, held

        def attend_latent(batch: Paging) -> Callable[[Kernels], tuple[Tensor, ...]]:
            def run(kernels: Kernels) -> tuple[Tensor, ...]:
                own = absorbed[: batch.rows]
                out = torch.zeros_like(own[:, :, : latent.rank])
                kernels.latent_attention(own, cache, *batch[1:], latent.width**-0.5, out)
                return (out,)

            return run

        yield Check("latent_rope_write", write_latent)
        for batch in batches:
            yield Check("latent_attention", attend_latent(batch))
        return
    head_dim = config.head_dim
    keys, values = (normal(blocks, block_size, config.kv_width) for _ in range(2))
    qkv = normal(rows, config.q_width + 2 * config.kv_width)
    q_norm, k_norm = (normal(head_dim) if config.qk_norm else None for _ in range(2))

    def write(kernels: Kernels) -> tuple[Tensor, ...]:
        mine, caches = qkv.clone(), (keys.clone(), values.clone())
        kernels.qk_norm_rope_write_kv(mine, cos, sin, slots, *caches, head_dim, q_norm, k_norm, 1e-6)
        return mine[:, : config.q_width], *caches

    def attend(batch: Paging, window: int) -> Callable[[Kernels], tuple[Tensor, ...]]:
        def run(kernels: Kernels) -> tuple[Tensor, ...]:
            q = qkv[: batch.rows, : config.q_width].view(batch.rows, -1, head_dim)
            out = torch.zeros(q.shape, dtype=dtype, device=device)
            kernels.paged_attention(q, keys, values, *batch[1:], head_dim**-0.5, out, window=window)
            return (out,)

        return run

    yield Check("qk_norm_rope_write_kv", write)
    for window in sorted({0, *config.windows}):
        for batch in batches:
            yield Check("paged_attention", attend(batch, window))


EXPERT_ROWS = 40
EXPERT_COLUMNS = 128
"""Of each expert: of all of a model's they would be its weights again. Sums are as long as the model's."""


def _experts(
    rule: Routing, hidden: int, inner: int, normal: Callable[..., Tensor], device: torch.device
) -> Iterator[Check]:
    """Their choice, their products, and the sum of what they say; among as many as the model has."""
    twins, chosen, places = ReferenceKernels(), rule.chosen, EXPERT_ROWS * rule.chosen
    # One order of the experts for all rows, which the correction keeps: no two are so close that rounding decides.
    rank = torch.randperm(rule.experts, generator=torch.Generator().manual_seed(1)).to(device) / rule.experts - 0.5
    logits = rank * (4 + torch.arange(EXPERT_ROWS, device=device)[:, None] / EXPERT_ROWS)
    correction = rank / 2 if rule.sigmoid else None

    def integers(count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32, device=device)

    def route(kernels: Kernels) -> tuple[Tensor, ...]:
        experts, weights = integers(places).view(-1, chosen), torch.zeros(EXPERT_ROWS, chosen, device=device)
        order, starts = integers(places), integers(rule.experts + 1)
        kernels.route(logits, correction, rule, experts, weights, order, starts)
        return experts, weights, order, starts

    yield Check("route", route)
    # Each row is of other experts than the one before: all have some, or as many as there are places.
    taken = torch.arange(places, device=device) % rule.experts
    order = taken.argsort(stable=True).int()
    starts = torch.searchsorted(taken[order], torch.arange(rule.experts + 1, device=device)).int()

    x, weights = normal(EXPERT_ROWS, hidden), torch.rand(EXPERT_ROWS, chosen, device=device)

    def matrices(rows: int, columns: int) -> PackedGroup:
        """Drawn one by one: in float32 all of them at once are gigabytes, which no worker has to spare."""
        group = torch.empty(rule.experts, rows, columns, dtype=x.dtype, device=device)
        for expert in group:
            expert.copy_(normal(rows, columns) * columns**-0.5)
        return PackedGroup(group, twins.layout(rows, columns, torch.float32))

    both, down = matrices(2 * EXPERT_COLUMNS, hidden), matrices(EXPERT_COLUMNS, inner)
    between, said = normal(places, inner), normal(places, EXPERT_COLUMNS)

    def gated(kernels: Kernels) -> tuple[Tensor, ...]:
        out = torch.empty_like(said)
        if isinstance(kernels, GatedGroupKernels):
            kernels.grouped_gated_linear(x, both, out, order, starts)
        else:
            apart = torch.cat((out, out), dim=1)
            kernels.grouped_linear(x, both, apart, order, starts)
            kernels.silu_mul(apart, out)
        return (out,)

    def multiplied(kernels: Kernels) -> tuple[Tensor, ...]:
        out = torch.empty_like(said)
        kernels.grouped_linear(between, down, out, order, starts)
        return (out,)

    def combined(kernels: Kernels) -> tuple[Tensor, ...]:
        alone, beside = torch.empty_like(said[:EXPERT_ROWS]), torch.empty_like(said[:EXPERT_ROWS])
        kernels.combine(said, weights, alone)
        kernels.combine(said, weights, beside, said[:EXPERT_ROWS])
        return alone, beside

    yield Check("grouped_linear", multiplied)
    yield Check("grouped_gated_linear", gated)
    yield Check("combine", combined)


def _adjusted(kernels: Kernels, vocab: int, device: torch.device) -> Tensor:
    """What may be chosen, and how much of it: a row that asks for nothing, one with a mask, two that edit tokens."""
    words, changes, half = -(-vocab // 32), min(1200, vocab // 2), torch.tensor(0.5).view(torch.int32).item()
    logits = torch.linspace(-9, 9, 4 * vocab, device=device).view(4, vocab)
    number = torch.arange(changes, dtype=torch.int32, device=device)
    halves = torch.full((changes,), half, dtype=torch.int32, device=device)
    edits = torch.stack([number * (vocab // changes) + 1, halves, halves, number % 4], dim=1)
    starts = torch.tensor([0, 0, 0, changes * 5 // 12, changes], dtype=torch.int32, device=device)
    mask_of = torch.tensor([-1, 1, -1, 0], dtype=torch.int32, device=device)
    masks = torch.arange(2 * words, dtype=torch.int32, device=device).view(2, words) * 40503
    penalties = torch.tensor([1.0, 1.0, 1.3, 0.8], device=device)
    found = kernels.adjust(logits, edits, starts, penalties, masks, mask_of)
    return torch.stack((found.isinf().float(), found.nan_to_num(neginf=0.0)))


def _drawn(kernels: Kernels, vocab: int, device: torch.device) -> Tensor:
    """Draws among equals in the middle of each one's share, so that rounding decides nothing: 1 where a token is drawn.
    Greedy, from all, by top-k, by top-p, by min-p."""
    first = 5
    equals = torch.arange(64, device=device) * ((vocab - first) // 64) + first
    logits = torch.full((5, vocab), -40.0, device=device)
    logits[:, equals] = 3.0
    logits[4, first] = 6.0
    settings = ((0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 32, 1.0, 0.0), (1.0, 0, 0.505, 0.0), (1.0, 0, 1.0, 0.5))
    # Each in memory of its own, as in a step: Triton compiles by how pointers are aligned.
    temperature, top_k, top_p, min_p = (torch.tensor(each, device=device) for each in zip(*settings, strict=True))
    uniform = torch.full((5,), 0.8125 + 1 / 128, dtype=torch.float64, device=device)
    tokens = kernels.sample(logits, temperature, top_k.int(), top_p, min_p, uniform)
    # Compared, never an index: one that no token has would end the device, and say nothing of the kernel.
    return (tokens[:, None] == torch.arange(vocab, device=device)).float()


def _paging(batch: Sequence[tuple[int, int]], count: int, block_size: int, generator: torch.Generator) -> Paging:
    """Tables as wide as the longest needs, over blocks in no order; sequences share blocks."""
    device, rows = generator.device, list(accumulate(new for new, _ in batch))
    width = -(-max(length for _, length in batch) // block_size)
    blocks = torch.randperm(count, generator=generator, device=device).to(torch.int32)
    places = torch.arange(width, device=device) + torch.arange(len(batch), device=device)[:, None]
    lengths = torch.tensor([length for _, length in batch], dtype=torch.int32, device=device)
    return Paging(rows[-1], blocks[places % count], lengths, torch.tensor([0, *rows], dtype=torch.int32, device=device))
