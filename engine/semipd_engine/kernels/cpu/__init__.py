"""The compiled kernels of a CPU behind the one signature. What they do not take (float16, odd heads), the twins do.

The promise beyond `signatures`: **a row's bits depend on its own tokens and on the weights alone.** Sums run over K in
one order for any number of rows; attention walks blocks of 64 absolute positions; threads split columns, heads and
rows, never a sum. Bits differ between levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from semipd_engine.kernels.cpu.blocks import BlockKernels, takes_latent_attention
from semipd_engine.kernels.cpu.library import LEVELS, CannotLoad, Library, load, runnable
from semipd_engine.kernels.cpu.operands import DTYPES, OperandError, angles, heads, matrix, number, paging, span, whole
from semipd_engine.kernels.cpu.tape import BYTES, encode
from semipd_engine.kernels.packed import PANEL, PANELS, PackedLayout, PackedWeight
from semipd_engine.kernels.rates import RATES, Rates
from semipd_engine.kernels.signatures import CannotRecord

__all__ = [
    "LEVELS",
    "CannotLoad",
    "CpuKernels",
    "Library",
    "OperandError",
    "best",
    "load",
    "runnable",
]

HEAD_DIM_STEP, HEAD_DIM_MAX = 16, 256
TILE_K = 32
"""Pairs of bfloat16 are padded to whole AMX tiles."""


class CpuKernels(BlockKernels):
    """`signatures.RecordingKernels`; each method is described there."""

    def __init__(self, library: Library, passed_over: str = "") -> None:
        """`passed_over`: why no faster level runs that this CPU could; empty if none is faster, or it was asked for."""
        shortfall = f"{library.level} computes, and this CPU could do more: {passed_over}" if passed_over else ""
        super().__init__(f"kernels: {library.level} (C++); this CPU runs {', '.join(runnable())}", shortfall)
        self._level = library.level
        self._calls = library.calls
        self._tape: list[bytes] | None = None

    @property
    def name(self) -> str:
        return self._level

    def _call(self, name: str, *arguments: float | None) -> None:
        if self._tape is not None:
            self._tape.append(encode(name, arguments))
        else:
            getattr(self._calls, f"semipd_{name}")(*arguments)

    def _twin(self) -> None:
        """A twin is about to serve, which no tape can hold."""
        if self._tape is not None:
            raise CannotRecord

    @contextmanager
    def recording(self) -> Iterator[list[bytes]]:
        tape: list[bytes] = []
        self._tape = tape
        try:
            yield tape
        finally:
            self._tape = None

    def replay(self, calls: bytes | bytearray) -> None:
        self._calls.semipd_run(bytes(calls), len(calls) // BYTES)

    def rates(self, dtype: torch.dtype, head_dim: int, latent: tuple[int, int] | None = None) -> Rates:
        """Where their twins serve, of those. A CPU has special instructions for bfloat16 alone."""
        twins = super().rates(dtype, head_dim, latent)
        if dtype not in DTYPES:
            return twins
        plain = {"avx512_bf16": "avx512", "amx": "avx512"} if dtype == torch.float32 else {}
        rates = RATES[plain.get(self._level, self._level)]
        if not takes_attention(dtype, head_dim):
            rates = replace(rates, scores=twins.scores)
        if latent is not None and not takes_latent_attention(dtype, *latent):
            rates = replace(rates, latent=twins.latent)
        return rates

    def layout(self, out_features: int, in_features: int, dtype: torch.dtype) -> PackedLayout:
        """Panels of 64 output features, K-major: float32 ``[panels, K, 64]``, bfloat16 ``[panels, K / 2, 64, 2]``."""
        if dtype not in DTYPES:
            return super().layout(out_features, in_features, dtype)
        panels = -(-out_features // PANEL)
        shape: tuple[int, ...] = (panels, in_features, PANEL)
        if dtype == torch.bfloat16:
            shape = (panels, -(-in_features // TILE_K) * TILE_K // 2, PANEL, 2)
        return PackedLayout(PANELS, shape, out_features, in_features)

    def pack_rows(self, weight: PackedWeight, first: int, rows: Tensor) -> None:
        if weight.layout.format != PANELS:
            super().pack_rows(weight, first, rows)
            return
        dtype, rows = number(weight=weight.data, rows=rows), rows.contiguous()
        if rows.shape[1] != weight.in_features or first + len(rows) > weight.out_features:
            raise OperandError(f"rows {first} + {tuple(rows.shape)} do not fit {weight.layout}")
        self._calls.semipd_pack_rows(
            dtype, rows.data_ptr(), rows.shape[1], first, rows.shape[0], rows.shape[1], weight.data.data_ptr()
        )

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor, panels: tuple[int, int] | None = None
    ) -> None:
        if weight.layout.format != PANELS:
            self._twin()
            super().linear(x, weight, bias, out, panels)
            return
        if out.dtype != torch.float32:
            number(weight=weight.data, out=out)
        self._product(x, weight, bias, out, panels, gated=False)

    def gated_linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor, panels: tuple[int, int] | None = None
    ) -> None:
        if weight.layout.format != PANELS:
            self._twin()
            super().gated_linear(x, weight, bias, out, panels)
            return
        if weight.out_features % (2 * PANEL):
            raise OperandError(f"weight has {weight.out_features} features: gate and up need whole panels of {PANEL}")
        number(weight=weight.data, out=out)
        self._product(x, weight, bias, out, panels, gated=True)

    def _product(
        self,
        x: Tensor,
        weight: PackedWeight,
        bias: Tensor | None,
        out: Tensor,
        panels: tuple[int, int] | None,
        gated: bool,
    ) -> None:
        layout, outputs, halves = weight.layout, weight.out_features, 2 if gated else 1
        self._call(
            "linear",
            number(weight=weight.data, x=x, bias=bias),
            *matrix("x", x, x.shape[0], layout.in_features),
            x.shape[0],
            layout.in_features,
            whole("weight", weight.data, x.dtype, *layout.shape),
            outputs,
            None if bias is None else whole("bias", bias, x.dtype, outputs),
            *matrix("out", out, x.shape[0], outputs // halves),
            out.dtype == torch.float32,
            gated,
            *span("panels", panels, weight.panels // halves),
        )

    def embedding(self, token_ids: Tensor, weight: PackedWeight, out: Tensor) -> None:
        if weight.data.dtype not in DTYPES or token_ids.dtype != torch.int32:
            super().embedding(token_ids, weight, out)
            return
        count = token_ids.shape[0]
        self._calls.semipd_embedding(
            number(weight=weight.data, out=out),
            whole("token_ids", token_ids, torch.int32, count),
            count,
            whole("weight", weight.data, out.dtype, *weight.layout.shape),
            weight.in_features,
            weight.layout.format == PANELS,
            *matrix("out", out, count, weight.in_features),
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None = None) -> None:
        if x.dtype not in DTYPES:
            self._twin()
            super().rms_norm(x, weight, eps, out, residual)
            return
        self._call(
            "rms_norm",
            number(x=x, out=out, residual=residual),
            *matrix("x", x, *x.shape),
            whole("weight", weight, x.dtype, x.shape[1]),
            eps,
            *((None, 0) if residual is None else matrix("residual", residual, *x.shape)),
            *matrix("out", out, *x.shape),
            *x.shape,
        )

    def silu_mul(self, x: Tensor, out: Tensor) -> None:
        if x.dtype not in DTYPES:
            self._twin()
            super().silu_mul(x, out)
            return
        rows, width = out.shape
        self._call(
            "silu_mul",
            number(x=x, out=out),
            *matrix("x", x, rows, 2 * width),
            *matrix("out", out, rows, width),
            rows,
            width,
        )

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
        if qkv.dtype not in DTYPES:
            self._twin()
            super().qk_norm_rope_write_kv(
                qkv, cos, sin, slot_mapping, key_cache, value_cache, head_dim, q_norm, k_norm, eps
            )
            return
        rows, kv_heads = qkv.shape[0], key_cache.shape[-1] // head_dim
        q_heads = qkv.shape[1] // head_dim - 2 * kv_heads
        self._call(
            "rope",
            number(qkv=qkv, key_cache=key_cache, value_cache=value_cache, q_norm=q_norm, k_norm=k_norm),
            *matrix("qkv", qkv, rows, (q_heads + 2 * kv_heads) * head_dim),
            rows,
            q_heads,
            kv_heads,
            head_dim,
            *angles(cos, sin, rows, head_dim),
            cos.shape[1],
            whole("slot_mapping", slot_mapping, torch.int32, rows),
            *_caches(key_cache, value_cache, kv_heads * head_dim),
            None if q_norm is None else whole("q_norm", q_norm, qkv.dtype, head_dim),
            None if k_norm is None else whole("k_norm", k_norm, qkv.dtype, head_dim),
            eps,
        )

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
        total, q_heads, head_dim = q.shape
        if not takes_attention(q.dtype, head_dim):
            self._twin()
            super().paged_attention(
                q, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale, out, rows, window
            )
            return
        kv_heads = key_cache.shape[2] // head_dim
        if not kv_heads or q_heads % kv_heads:
            raise OperandError(f"{q_heads} heads over {kv_heads}")
        self._call(
            "attention",
            number(q=q, key_cache=key_cache, value_cache=value_cache, out=out),
            *heads("q", q, total, q_heads, head_dim),
            *_caches(key_cache, value_cache, kv_heads * head_dim),
            key_cache.shape[1],
            *paging(block_tables, seq_lens, query_start_loc),
            q_heads,
            kv_heads,
            head_dim,
            scale,
            *heads("out", out, total, q_heads, head_dim),
            *span("rows", rows, total),
            window,
        )


def takes_attention(dtype: torch.dtype, head_dim: int) -> bool:
    """Or does the twin serve `paged_attention`?"""
    return dtype in DTYPES and head_dim % HEAD_DIM_STEP == 0 and head_dim <= HEAD_DIM_MAX


def best() -> CpuKernels:
    """The fastest level that loads. Raises `CannotLoad`, with the reason of each that does not."""
    reasons: dict[str, None] = {}  # once each, in order
    for level in runnable():
        try:
            return CpuKernels(load(level), "; ".join(reasons))
        except CannotLoad as error:
            reasons[str(error)] = None
    raise CannotLoad("; ".join(reasons) or "this CPU has no AVX2")


def _caches(keys: Tensor, values: Tensor, width: int) -> tuple[int, int]:
    """Addresses of both, contiguous ``[blocks, block_size, width]`` of equal shapes."""
    shape = (*keys.shape[:2], width)
    return whole("key_cache", keys, keys.dtype, *shape), whole("value_cache", values, keys.dtype, *shape)
