"""Kernels of a GPU in Triton; matrix products, embedding and sampling are torch's (cuBLAS), as in the twin.

**Not executed on a GPU yet**: held against their twins and float64 under Triton's interpreter. `SEMIPD_KERNELS=triton`
takes them; `auto` does not until a report on a GPU exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.kernels.gpu import attention, rows
from semipd_engine.kernels.rates import UNPACED, Rates
from semipd_engine.kernels.reference import ReferenceKernels


class TritonKernels(ReferenceKernels):
    """`signatures.Kernels`; each method is described there."""

    def __init__(self, num_sms: int, why: str = "kernels: triton") -> None:
        """`num_sms`: streaming multiprocessors that this process may use, as it sees them."""
        super().__init__(why)
        self._num_sms = num_sms

    @property
    def name(self) -> str:
        return "triton"

    def rates(self, dtype: torch.dtype, head_dim: int, latent: tuple[int, int] | None = None) -> Rates:
        return UNPACED

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None = None) -> None:
        rows.rms_norm(x, weight, eps, out, residual)

    def silu_mul(self, x: Tensor, out: Tensor) -> None:
        rows.silu_mul(x, out)

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
        rows.qk_norm_rope_write_kv(qkv, cos, sin, slot_mapping, key_cache, value_cache, head_dim, q_norm, k_norm, eps)

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
        attention.paged_attention(
            *(q, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale, out),
            rows or (0, len(q)),
            window,
            self._num_sms,
        )
