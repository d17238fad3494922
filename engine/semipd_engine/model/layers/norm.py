"""RMSNorm of the residual stream, and the addition that comes before it."""

from __future__ import annotations

from torch import Tensor

from semipd_engine.kernels import Kernels
from semipd_engine.model.stage import Step, Work

HIDDEN, NORMED, BLOCK = "hidden", "normed", "block"
"""Buffers, all of the model's width: the residual stream, its norm, and what a block hands back to be added."""


class Norm:
    """Stage: ``hidden += block`` (unless it is the first of all), then ``normed = norm(hidden)``."""

    recordable = True

    def __init__(self, kernels: Kernels, weight: Tensor, eps: float, add: bool = True) -> None:
        self._kernels = kernels
        self._weight, self._eps, self._add = weight, eps, add

    def units(self, step: Step) -> int:
        return step.batch.rows

    def work(self, step: Step) -> Work:
        return Work(read=4 * step.batch.rows * self._weight.nbytes)

    def run(self, step: Step, begin: int, end: int) -> None:
        width = self._weight.shape[0]
        hidden, normed = step.rows(HIDDEN, width)[begin:end], step.rows(NORMED, width)[begin:end]
        if self._add:
            block = step.rows(BLOCK, width)[begin:end]
            self._kernels.rms_norm(block, self._weight, self._eps, normed, residual=hidden)
        else:
            self._kernels.rms_norm(hidden, self._weight, self._eps, normed)
