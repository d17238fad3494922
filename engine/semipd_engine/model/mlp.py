"""SwiGLU: one layer's feed-forward block. Exchangeable: a mixture of experts has the same call."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from semipd_engine import ops
from semipd_engine.model.batch import Batch
from semipd_engine.model.quanta import Load, Quanta


class SwiGLU:
    def __init__(self, weights: Mapping[str, Tensor], prefix: str, quanta: Quanta) -> None:
        self._quanta = quanta
        self._gate_up, self._gate_up_bias = weights[f"{prefix}.gate_up.weight"], weights.get(f"{prefix}.gate_up.bias")
        self._down, self._down_bias = weights[f"{prefix}.down.weight"], weights.get(f"{prefix}.down.bias")

    def load(self, batch: Batch) -> Load:
        return Load(
            batch.rows,
            weights=self._gate_up.numel() + self._down.numel(),
            pointwise=batch.rows * self._gate_up.shape[0],
        )

    def __call__(self, x: Tensor) -> Tensor:
        """``x [T, hidden]``, normalised. Returns [T, hidden]."""
        inner = self._quanta.linear(x, self._gate_up, self._gate_up_bias)
        with self._quanta.quantum(Load(x.shape[0], pointwise=inner.numel())):
            inner = ops.silu_and_mul(inner)
        return self._quanta.linear(inner, self._down, self._down_bias)
