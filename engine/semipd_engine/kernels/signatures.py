"""What a kernel is called, what it takes and what it writes: one signature for each room of `kernels`.

T: rows (tokens) of a step. S: its sequences. H, KV, D: query heads, key/value heads, head_dim. A *cache* is one layer's
view of one component of the KV pool, ``[num_blocks, block_size, width]``; the table entry that holds position p is
p // block_size. Kernels write into what the caller gives them and keep nothing between calls. They know nothing of
requests, plans, models and pacing.

Rows of activations are contiguous in their last dimension; the stride between rows is free, so slices of rows or of
columns are taken as they are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from semipd_engine.kernels.packed import PackedGroup, PackedLayout, PackedWeight
from semipd_engine.kernels.rates import Rates

SEEN, STOPPED = 1, 2
"""Of a token that a row's logits are adjusted for: it occurred before; it must not be chosen yet."""


class RoutingRule(Protocol):
    """How experts are chosen; `cards.blocks.Routing` says what each field means."""

    @property
    def experts(self) -> int: ...
    @property
    def chosen(self) -> int: ...
    @property
    def sigmoid(self) -> bool: ...
    @property
    def normalise(self) -> bool: ...
    @property
    def scale(self) -> float: ...
    @property
    def groups(self) -> int: ...
    @property
    def groups_chosen(self) -> int: ...


class Kernels(Protocol):
    @property
    def name(self) -> str:
        """`reference`, `triton`, or the CPU's level: `avx2`, `avx512`, `avx512_bf16`, `amx`."""

    @property
    def why(self) -> str:
        """One line for the log: what runs, and why nothing better does."""

    @property
    def shortfall(self) -> str:
        """Why slower ones run than this machine could, and what helps; empty where nothing is amiss."""

    def rates(self, dtype: torch.dtype, head_dim: int, latent: tuple[int, int] | None = None) -> Rates:
        """How fast one core is with them: in this dtype, with attention over such heads, and with latent attention over
        vectors of a width and a rank."""

    # ---- linear --------------------------------------------------------------------------------------------------

    def layout(self, out_features: int, in_features: int, dtype: torch.dtype) -> PackedLayout:
        """The format in which `linear` wants such a weight."""

    def pack_rows(self, weight: PackedWeight, first: int, rows: Tensor) -> None:
        """Write ``rows [n, in_features]``, of the weight's dtype, as output features first .. first + n - 1.

        Stacked weights (query-key-value, gate-up) are packed source by source. ``weight.data`` starts out zeroed.
        Deterministic; runs in the caller's thread if torch has one.
        """

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor, panels: tuple[int, int] | None = None
    ) -> None:
        """``out[:, 64 a : 64 b] = x @ weight[64 a : 64 b].T + bias[64 a : 64 b]`` for ``panels = (a, b)``; None is all.

        ``x [T, in]`` and `bias` of the weight's dtype, ``out [T, out_features]`` of that dtype or float32. Sums are
        float32, with one rounding at the end. `x` and `out` must not overlap.
        """

    def gated_linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor, panels: tuple[int, int] | None = None
    ) -> None:
        """``out [T, I] = silu(gate) * up`` of the halves of a weight ``[2 * I, in]``: what `linear` and then `silu_mul`
        write, gate and up rounded between them.

        `out` of the weight's dtype, I a multiple of `PANEL`; `panels` are those of `out`.
        """

    def grouped_linear(
        self,
        x: Tensor,
        weights: PackedGroup,
        out: Tensor,
        order: Tensor | None = None,
        starts: Tensor | None = None,
        panels: tuple[int, int] | None = None,
    ) -> None:
        """``out[i] = x[i // f] @ weights[g].T`` for the rows i of each group g, where f = len(out) / len(x).

        The rows of group g are ``order[starts[g]:starts[g + 1]]``, int32 [len(out)] and [G + 1]; without them i % G is
        the group of row i. Only groups that have rows are read. Panels and dtypes as in `linear`.
        """

    def route(
        self,
        logits: Tensor,
        correction: Tensor | None,
        routing: RoutingRule,
        experts: Tensor,
        weights: Tensor,
        order: Tensor,
        starts: Tensor,
    ) -> None:
        """The experts of each row of ``logits`` (float32 [T, E]): int32 ``experts [T, K]``, best first, and float32
        ``weights [T, K]``.

        ``correction``, float32 [E], is added to the scores for the choice alone. ``order`` int32 [T * K]: the places of
        `experts`, counted row by row, in the order of their expert; those of expert e are ``order[starts[e]:starts[e +
        1]]``, int32 [E + 1].
        """

    def combine(self, x: Tensor, weights: Tensor, out: Tensor, shared: Tensor | None = None) -> None:
        """``out[t] = sum of weights[t, k] * x[t * K + k] over k``, plus ``shared[t]``. ``x [T * K, width]``, float32
        ``weights [T, K]``, ``out`` and ``shared [T, width]``. In float32, rounded once."""

    def embedding(self, token_ids: Tensor, weight: PackedWeight, out: Tensor) -> None:
        """``out[i] = weight[token_ids[i]]``: int32 [T] ids, ``out [T, in_features]``. Reads any format."""

    # ---- rows ----------------------------------------------------------------------------------------------------

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None = None) -> None:
        """``out = x / sqrt(mean(x ** 2) + eps) * weight`` over the last dimension of ``x [T, width]``.

        With `residual` [T, width], ``residual += x`` comes first and the norm is of the sum. In float32; the sum, and
        the quotient before the weight, are rounded to x's dtype, as in transformers. `out` may be `x`.
        """

    def silu_mul(self, x: Tensor, out: Tensor) -> None:
        """``out [T, I] = silu(gate) * up`` for ``x [T, 2 * I]``, gate and up side by side. In float32, rounded once."""

    def qk_norm_rope_write_kv(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        slot_mapping: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        head_dim: int,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> None:
        """Norm (where weights ``[D]`` are given) and rotate queries in place; the same for keys, into their cache.

        ``qkv [T, (H + 2 KV) * D]``. ``cos``, ``sin``: float32 [T, rotary / 2]; the pairs are (i, i + rotary / 2), and
        dimensions from `rotary` on stay. ``slot_mapping`` int32 [T]: block * block_size + offset, all different; -1
        writes nothing. Float32 arithmetic, rounded after the norm and at the end; the key part of `qkv` is left
        undefined.
        """

    # ---- attention -----------------------------------------------------------------------------------------------

    def paged_attention(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        query_start_loc: Tensor,
        scale: float,
        out: Tensor,
        rows: tuple[int, int] | None = None,
        window: int = 0,
    ) -> None:
        """Causal attention of each row over its own sequence, decode rows and chunks alike.

        ``q``, ``out [T, H, D]``; caches of width KV * D, the rows' own keys and values already in them.
        ``block_tables`` int32 [S, blocks]; ``seq_lens`` int32 [S]: positions, the new rows included;
        ``query_start_loc`` int32 [S + 1]: sequence s has the rows ``query_start_loc[s] .. query_start_loc[s + 1] - 1``,
        which are its last positions; it may have none. Only ``rows = (a, b)`` of T are computed, None is all.
        ``window`` > 0: a row sees its last `window` positions. Rows from ``query_start_loc[S]`` on are padding and stay
        as they are. Nothing that lies in the caches beyond a sequence's positions shows in the result, NaN included.
        """

    def latent_rope_write(
        self,
        q: Tensor,
        kv: Tensor,
        cos: Tensor,
        sin: Tensor,
        slot_mapping: Tensor,
        norm: Tensor,
        eps: float,
        cache: Tensor,
        out: Tensor,
    ) -> None:
        """For latent attention: rotate the last R dimensions of each query head into the last R of ``out``; norm the
        first dimensions of ``kv`` and rotate its last R, into the cache.

        ``q [T, H, nope + R]``, ``kv [T, rank + R]``, ``norm [rank]``, ``out [T, H, rank + R]``, cache of width rank +
        R; ``cos``, ``sin``: float32 [T, R / 2], pairs (i, i + R / 2). Slots and rounding as in `qk_norm_rope_write_kv`.
        """

    def latent_attention(
        self,
        q: Tensor,
        cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        query_start_loc: Tensor,
        scale: float,
        out: Tensor,
        rows: tuple[int, int] | None = None,
    ) -> None:
        """`paged_attention` where all heads share the keys, and the values are the keys' first dimensions.

        ``q [T, H, W]`` with the cache's width W, ``out [T, H, rank]``.
        """

    # ---- sampling ------------------------------------------------------------------------------------------------

    def adjust(
        self, logits: Tensor, edits: Tensor, starts: Tensor, repetition: Tensor, masks: Tensor, mask_of: Tensor
    ) -> Tensor:
        """``logits`` (float32 [R, vocab]) as their rows want them: a copy, contiguous.

        Row r has the ``edits[starts[r]:starts[r + 1]]``, int32 [N, 4] and [R + 1]: a token, different ones in a row;
        the bits of two float32, what is added to its logit first and what is taken off at the end; and `SEEN` and
        `STOPPED`, added up. Between the two a stopped one becomes minus infinity, and a seen one is divided by the
        row's ``repetition`` (float32 [R]) where it is positive, else multiplied. Each operation is rounded by itself.
        ``mask_of`` int32 [R]: of ``masks``, int32 [M, ceil(vocab / 32)], the one whose bits (token t: bit t % 32 of
        word t // 32) say what the row allows; -1: all. The rest becomes minus infinity.
        """

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
    ) -> Tensor:
        """One token for each row of ``logits`` (float32 [R, vocab]): int64 [R]. A row depends on its own entries only.

        ``temperature`` float32 [R]: 0 takes the most likely token (the first of equals). Else the probabilities of
        logits / temperature are filtered by ``min_p`` (float32; keeps what is at least so many times as likely as the
        likeliest), ``top_k`` (int32; 0 keeps all; exactly k, the first of equals) and ``top_p`` (float32; the smallest
        set of likeliest ones that reaches it, at least one), and the token is where the cumulated rest, in vocabulary
        order, passes ``uniform`` (float64 [R] in [0, 1)) of its sum.
        """


class CannotRecord(Exception):
    """The call would be served in another way than by a compiled kernel: it is carried out, not recorded."""


@runtime_checkable
class GatedGroupKernels(Kernels, Protocol):
    """Kernels that join gate and up of experts in the product that makes both."""

    def grouped_gated_linear(
        self,
        x: Tensor,
        weights: PackedGroup,
        out: Tensor,
        order: Tensor,
        starts: Tensor,
        panels: tuple[int, int] | None = None,
    ) -> None:
        """``out = silu(gate) * up`` of the halves of matrices ``[2 * I, in]``: what `grouped_linear` and then
        `silu_mul` write, gate and up rounded between them. `out` of the weights' dtype; `panels` are those of `out`."""


@runtime_checkable
class RecordingKernels(Kernels, Protocol):
    """Kernels whose calls can be kept and carried out later, many at once: no Python between them, no thread woken."""

    def recording(self) -> AbstractContextManager[list[bytes]]:
        """Calls inside are kept in the list that it yields, in order, and not carried out. A call that cannot be kept
        raises `CannotRecord`, and nothing has happened. For linear, norms, SiLU, rotation and attention."""

    def replay(self, calls: bytes | bytearray) -> None:
        """Carry out kept calls, joined, in order. Every tensor that they name must still be at its address; what lies
        there now counts."""
