"""A matrix and its bias: one object that owns the format its kernels read.

The panels of the output are its axis: 64 features at a time, so a weight is read once however the product is cut. The
matrices of a group (experts, heads) are cut together, each at the same panels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.kernels import PANEL, GatedGroupKernels, Kernels, PackedGroup, PackedWeight
from semipd_engine.model.stage import Step, Work


class Linear:
    def __init__(self, kernels: Kernels, weight: PackedWeight, bias: Tensor | None = None) -> None:
        """`weight` is the only copy; read, never written. `bias` ``[out_features]`` of the weight's dtype."""
        self._kernels = kernels
        self._weight = weight
        self._bias = bias

    @property
    def in_features(self) -> int:
        return self._weight.in_features

    @property
    def out_features(self) -> int:
        return self._weight.out_features

    @property
    def panels(self) -> int:
        return self._weight.panels

    def work(self, rows: int) -> Work:
        return Work(read=self._weight.data.nbytes, products=rows * self.in_features * self.out_features)

    def run(self, x: Tensor, out: Tensor, begin: int, end: int) -> None:
        """Panels begin .. end - 1 of ``out [T, out_features]`` from ``x [T, in_features]``."""
        self._kernels.linear(x, self._weight, self._bias, out, (begin, end))

    def run_gated(self, x: Tensor, out: Tensor, begin: int, end: int) -> None:
        """Panels of ``out [T, out_features / 2] = silu(gate) * up``, of a matrix that holds both."""
        self._kernels.gated_linear(x, self._weight, self._bias, out, (begin, end))

    def gather(self, token_ids: Tensor, out: Tensor) -> None:
        """Rows of the matrix, as an embedding: int32 [T] ids, ``out [T, in_features]``."""
        self._kernels.embedding(token_ids, self._weight, out)


class GroupedLinear:
    """Matrices of one shape, of which each row takes one."""

    def __init__(self, kernels: Kernels, weights: PackedGroup) -> None:
        self._kernels, self._weights = kernels, weights
        self._gating = kernels if isinstance(kernels, GatedGroupKernels) else None

    @property
    def gates(self) -> bool:
        """Can they join the gate and the up that they hold, as they make them?"""
        return self._gating is not None

    @property
    def count(self) -> int:
        return len(self._weights)

    @property
    def in_features(self) -> int:
        return self._weights.layout.in_features

    @property
    def out_features(self) -> int:
        return self._weights.layout.out_features

    @property
    def panels(self) -> int:
        return -(-self.out_features // PANEL)

    def work(self, rows: int) -> Work:
        """Rows that take as many matrices as they can: what is read is seldom more."""
        read = self._weights.data.nbytes * min(rows, self.count) // self.count
        return Work(read=read, gathered=rows * self.in_features * self.out_features)

    def run(
        self, x: Tensor, out: Tensor, begin: int, end: int, order: Tensor | None = None, starts: Tensor | None = None
    ) -> None:
        """Panels begin .. end - 1; `signatures.Kernels.grouped_linear` says which row takes which matrix."""
        self._kernels.grouped_linear(x, self._weights, out, order, starts, (begin, end))

    def run_gated(self, x: Tensor, out: Tensor, begin: int, end: int, order: Tensor, starts: Tensor) -> None:
        """Panels of ``out = silu(gate) * up``, of matrices that hold both; only where `gates`."""
        assert self._gating is not None
        self._gating.grouped_gated_linear(x, self._weights, out, order, starts, (begin, end))


class Project:
    """Stage: ``target = source @ weight.T + bias``."""

    recordable = True

    def __init__(self, linear: Linear, source: str, target: str, dtype: torch.dtype | None = None) -> None:
        """`dtype` of the target; None: the model's."""
        self._linear = linear
        self._source, self._target, self._dtype = source, target, dtype

    def units(self, step: Step) -> int:
        return self._linear.panels

    def work(self, step: Step) -> Work:
        return self._linear.work(step.batch.rows)

    def run(self, step: Step, begin: int, end: int) -> None:
        linear = self._linear
        x, out = step.rows(self._source, linear.in_features), step.rows(self._target, linear.out_features, self._dtype)
        linear.run(x, out, begin, end)
