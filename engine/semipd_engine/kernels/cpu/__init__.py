"""The compiled kernels of a CPU behind the one signature. What they do not take (float16, odd heads), the twins do.

The promise beyond `signatures`: **a row's bits depend on its own tokens and on the weights alone.** Sums run over K in
one order for any number of rows; attention walks blocks of 64 absolute positions; threads split columns, heads and
rows, never a sum. Bits differ between levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from semipd_engine.kernels.cpu.library import LEVELS, CannotLoad, Library, load, runnable
from semipd_engine.kernels.cpu.tape import BYTES, encode
from semipd_engine.kernels.reference import ReferenceKernels
from semipd_engine.kernels.signatures import PANEL, PANELS, CannotRecord, PackedLayout, PackedWeight

__all__ = ["LEVELS", "CannotLoad", "CpuKernels", "best", "load", "runnable"]

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
HEAD_DIM_STEP, HEAD_DIM_MAX = 16, 256
TILE_K = 32
"""Pairs of bfloat16 are padded to whole AMX tiles."""


class CpuKernels(ReferenceKernels):
    """`signatures.RecordingKernels`; each method is described there."""

    def __init__(self, library: Library) -> None:
        super().__init__(f"kernels: {library.level} (C++); this CPU runs {', '.join(runnable())}")
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
        dtype, rows = _dtype(weight.data, rows), rows.contiguous()
        if rows.shape[1] != weight.in_features or first + len(rows) > weight.out_features:
            raise ValueError(f"rows {first} + {tuple(rows.shape)} do not fit {weight.layout}")
        self._calls.semipd_pack_rows(
            dtype, rows.data_ptr(), rows.shape[1], first, rows.shape[0], rows.shape[1], weight.data.data_ptr()
        )

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor, panels: tuple[int, int] | None = None
    ) -> None:
        layout = weight.layout
        if layout.format != PANELS:
            self._twin()
            super().linear(x, weight, bias, out, panels)
            return
        first, last = panels or (0, weight.panels)
        self._call(
            "linear",
            _dtype(weight.data, x, bias),
            *_matrix(x),
            x.shape[0],
            layout.in_features,
            weight.data.data_ptr(),
            layout.out_features,
            None if bias is None else bias.data_ptr(),
            *_matrix(out),
            out.dtype == torch.float32,
            first,
            last,
        )

    def embedding(self, token_ids: Tensor, weight: PackedWeight, out: Tensor) -> None:
        if weight.data.dtype not in DTYPES or token_ids.dtype != torch.int32:
            super().embedding(token_ids, weight, out)
            return
        self._calls.semipd_embedding(
            _dtype(weight.data, out),
            token_ids.data_ptr(),
            token_ids.shape[0],
            weight.data.data_ptr(),
            weight.in_features,
            weight.layout.format == PANELS,
            *_matrix(out),
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None = None) -> None:
        if x.dtype not in DTYPES:
            self._twin()
            super().rms_norm(x, weight, eps, out, residual)
            return
        self._call(
            "rms_norm",
            _dtype(x, weight, out, residual),
            *_matrix(x),
            weight.data_ptr(),
            eps,
            *((None, 0) if residual is None else _matrix(residual)),
            *_matrix(out),
            *x.shape,
        )

    def silu_mul(self, x: Tensor, out: Tensor) -> None:
        if x.dtype not in DTYPES:
            self._twin()
            super().silu_mul(x, out)
            return
        self._call("silu_mul", _dtype(x, out), *_matrix(x), *_matrix(out), *out.shape)

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
        kv_heads = key_cache.shape[-1] // head_dim
        self._call(
            "rope",
            _dtype(qkv, key_cache, value_cache, q_norm, k_norm),
            *_matrix(qkv),
            qkv.shape[0],
            qkv.shape[1] // head_dim - 2 * kv_heads,
            kv_heads,
            head_dim,
            cos.data_ptr(),
            sin.data_ptr(),
            *cos.stride()[:1],
            cos.shape[1],
            slot_mapping.data_ptr(),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            None if q_norm is None else q_norm.data_ptr(),
            None if k_norm is None else k_norm.data_ptr(),
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
        total, heads, head_dim = q.shape
        if q.dtype not in DTYPES or head_dim % HEAD_DIM_STEP or head_dim > HEAD_DIM_MAX:
            self._twin()
            super().paged_attention(
                q, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale, out, rows, window
            )
            return
        first, last = rows or (0, total)
        self._call(
            "attention",
            _dtype(q, key_cache, value_cache, out),
            q.data_ptr(),
            q.stride(0),
            q.stride(1),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            key_cache.shape[1],
            block_tables.data_ptr(),
            block_tables.stride(0),
            seq_lens.data_ptr(),
            query_start_loc.data_ptr(),
            seq_lens.shape[0],
            heads,
            key_cache.shape[2] // head_dim,
            head_dim,
            scale,
            out.data_ptr(),
            out.stride(0),
            out.stride(1),
            first,
            last,
            window,
        )


def best() -> CpuKernels:
    """The fastest level that loads. Raises `CannotLoad`, with the reason of each that does not."""
    reasons = []
    for level in runnable():
        try:
            return CpuKernels(load(level))
        except CannotLoad as error:
            reasons.append(str(error))
    raise CannotLoad("; ".join(dict.fromkeys(reasons)) or "this CPU has no AVX2")


def _dtype(first: Tensor, *others: Tensor | None) -> int:
    """The C interface's number for the dtype that all have. Raises TypeError."""
    for other in others:
        if other is not None and other.dtype != first.dtype:
            raise TypeError(f"{other.dtype} beside {first.dtype}")
    return DTYPES[first.dtype]


def _matrix(x: Tensor) -> tuple[int, int]:
    """Address and row stride. Raises ValueError unless the elements of a row lie side by side."""
    stride, step = x.stride()
    if step != 1 and x.shape[1] > 1:
        raise ValueError(f"the last dimension of {tuple(x.shape)} has stride {step}, 1 is needed")
    return x.data_ptr(), stride
