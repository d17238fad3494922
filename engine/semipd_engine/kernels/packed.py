"""How a weight lies in memory for the kernels that read it: format, shape, and the tensor that is its only copy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

PANEL = 64
"""Output features of a panel: the unit in which a matrix product is cut."""
ROWS, PANELS = "rows", "panels64"
"""Formats: ``[out, in]`` as in a checkpoint; panels of 64 output features, see `kernels.cpu.CpuKernels.layout`."""


@dataclass(frozen=True)
class PackedLayout:
    """How a weight ``[out_features, in_features]`` lies in memory. Goes into the manifest of the weights."""

    format: str
    """`ROWS` or `PANELS`."""
    shape: tuple[int, ...]
    """Of the tensor that holds it."""
    out_features: int
    in_features: int


@dataclass(frozen=True)
class PackedWeight:
    """A weight in the format that its kernels read; the only copy of it."""

    data: Tensor
    layout: PackedLayout

    @property
    def panels(self) -> int:
        """Panels of `PANEL` output features, the last one perhaps narrower."""
        return -(-self.layout.out_features // PANEL)

    @property
    def out_features(self) -> int:
        return self.layout.out_features

    @property
    def in_features(self) -> int:
        return self.layout.in_features


@dataclass(frozen=True)
class PackedGroup:
    """Weights of one shape, one behind the other: of experts, or of heads."""

    data: Tensor
    """``[G, *layout.shape]``"""
    layout: PackedLayout
    """Of one."""

    def __len__(self) -> int:
        return int(self.data.shape[0])

    def __getitem__(self, index: int) -> PackedWeight:
        return PackedWeight(self.data[index], self.layout)
