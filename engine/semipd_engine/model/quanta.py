"""Cuts a step's work into pieces that the pacer may interleave with the other phase's.

A piece should be as large as possible (each costs a little) and at most about 5 ms (the peer waits for it). How long
work takes is learnt while it runs: a rate for each kind of work, corrected after every piece. Without a limit
(`Unpaced`) nothing is cut and nothing measured. Knows nothing of layers, threads or the peer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from semipd_engine.pacing.quantum import Pacer, Unpaced

TARGET_SECONDS = 0.004
"""Aim below the limit of 5 ms: estimates are off by some 20 %."""
LINEAR, ATTENTION, POINTWISE = "linear", "attention", "pointwise"
PRIOR_SECONDS_PER_UNIT = {ATTENTION: 1e-10, POINTWISE: 1e-9}
COLUMN_STEP = 64
"""Columns of a GEMM are cut at multiples of this, so that few shapes occur (each has its own compiled kernel)."""
_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class Load:
    """An amount of work. All amounts are of one batch of `rows` rows."""

    rows: int
    weights: int = 0
    """Elements of the weight matrices that the rows are multiplied with."""
    attention: int = 0
    """Query heads x head_dim x visible positions, summed over the rows."""
    pointwise: int = 0
    """Elements touched by pointwise operations."""

    def __mul__(self, count: int) -> Load:
        return Load(self.rows, self.weights * count, self.attention * count, self.pointwise * count)

    def __add__(self, other: Load) -> Load:
        return Load(
            self.rows,
            self.weights + other.weights,
            self.attention + other.attention,
            self.pointwise + other.pointwise,
        )


class Quanta:
    def __init__(
        self,
        pacer: Pacer,
        target_seconds: float = TARGET_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pacer = pacer
        self._clock = clock
        self._target = target_seconds
        self.paced = not isinstance(pacer, Unpaced)
        self._rates: dict[tuple[str, int], float] = {}
        self._inside = False

    def estimate(self, load: Load) -> float:
        """Seconds that the load will take, by what was learnt so far."""
        return sum(units * self._rates.setdefault(key, prior) for key, units, prior in self._terms(load))

    def fitting(self, load: Load) -> int:
        """How many loads of this size make one quantum, at least 1."""
        if not self.paced or self._inside:
            return 1 << 30
        return max(1, int(self._target / max(self.estimate(load), 1e-9)))

    def pieces(self, load: Load) -> int:
        """In how many pieces this load should be cut."""
        return 1 if not self.paced or self._inside else max(1, math.ceil(self.estimate(load) / self._target))

    def group(self, load: Load) -> AbstractContextManager[None]:
        """One quantum around the block if all of it fits in one; else nothing, and the parts inside decide."""
        if not self.paced or self._inside or self.estimate(load) > self._target:
            return _NOTHING
        return self._quantum(load)

    def quantum(self, load: Load) -> AbstractContextManager[None]:
        """One quantum around a block that cannot be cut further (or is inside one already)."""
        return _NOTHING if not self.paced or self._inside else self._quantum(load)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [T, in] @ weight [out, in].T + bias``; cut by output columns, which reads each weight once only."""
        columns, rows = weight.shape[0], x.shape[0]
        pieces = self.pieces(Load(rows, weights=weight.numel()))
        if pieces == 1:
            with self.quantum(Load(rows, weights=weight.numel())):
                return F.linear(x, weight, bias)
        step = -(-columns // pieces // COLUMN_STEP) * COLUMN_STEP
        out = x.new_empty(rows, columns)
        for first in range(0, columns, step):
            part = weight[first : first + step]
            with self.quantum(Load(rows, weights=part.numel())):
                out[:, first : first + step] = F.linear(x, part, None if bias is None else bias[first : first + step])
        return out

    @contextmanager
    def _quantum(self, load: Load) -> Iterator[None]:
        with self._pacer.quantum():
            self._inside = True
            begin = self._clock()
            try:
                yield
            finally:
                self._inside = False
                self._learn(load, self._clock() - begin)

    def _learn(self, load: Load, seconds: float) -> None:
        estimate = self.estimate(load)
        if estimate <= 0:
            return
        correction = min(max(seconds / estimate, 0.25), 4.0) ** 0.3
        for key, units, _ in self._terms(load):
            if units:
                self._rates[key] *= correction

    @staticmethod
    def _terms(load: Load) -> tuple[tuple[tuple[str, int], int, float], ...]:
        """(rate's key, units, prior). A GEMM's rate depends on its rows: bound by memory for few, by arithmetic for
        many."""
        prior = 1e-10 + load.rows * 2e-11
        return (
            ((LINEAR, load.rows.bit_length()), load.weights, prior),
            ((ATTENTION, 0 if load.rows < 32 else 1), load.attention, PRIOR_SECONDS_PER_UNIT[ATTENTION]),
            ((POINTWISE, 0), load.pointwise, PRIOR_SECONDS_PER_UNIT[POINTWISE]),
        )
