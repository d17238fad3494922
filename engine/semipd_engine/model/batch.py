"""The rows of one step as the layers see them: positions, slots and block tables as tensors.

Built once for each step and shared by all its layers. Knows nothing of weights or sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from semipd_engine.ops.torch_ref import causal_mask


@dataclass(frozen=True)
class Segment:
    """Consecutive rows [first, first + rows) of the batch that are one sequence's positions from `start` on."""

    first: int
    rows: int
    start: int
    block_table: Tensor
    """int64: the sequence's blocks in order."""
    _masks: list[Tensor] = field(default_factory=list, repr=False)

    def mask(self, like: Tensor, begin: int, end: int) -> Tensor | None:
        """Causal mask of rows [begin, end); None where the operation needs none. On a GPU it is a rule, not a matrix:
        torch's fast kernels take no matrix, and its plain one repeats all heads in float32."""
        if self.start + begin == 0 or end - begin == 1:
            return None
        if like.device.type == "cuda":
            rule: Tensor = causal_lower_right(end - begin, self.start + end)
            return rule
        if not self._masks:
            self._masks.append(causal_mask(self.rows, self.start, like.dtype, like.device))
        return self._masks[0][begin:end, : self.start + end]


@dataclass(frozen=True)
class Group:
    """Single rows of sequences of similar context length, which are attended to in one operation."""

    rows: Tensor
    """int64 [B]: their indices in the batch."""
    block_tables: Tensor
    """int64 [B, blocks]."""
    context: int
    """The longest one's positions, its new row included."""
    mask: Tensor | None
    """`ops.torch_ref.length_mask`; None if all are equally long."""

    @property
    def visible(self) -> int:
        """Positions read, summed over the rows."""
        return int(self.rows.shape[0]) * self.context


@dataclass(frozen=True)
class Batch:
    """Sequences with several rows are segments; those with one row are attended to in groups."""

    slots: Tensor
    """int64 [T]: where each row's key and value go (block * block_size + offset)."""
    cos: Tensor
    sin: Tensor
    segments: tuple[Segment, ...] = ()
    groups: tuple[Group, ...] = ()
    """Together with the segments they hold each row once."""

    @property
    def rows(self) -> int:
        return int(self.slots.shape[0])

    @property
    def visible(self) -> int:
        """Positions seen, summed over the rows."""
        rows = sum(group.visible for group in self.groups)
        return rows + sum(s.rows * s.start + s.rows * (s.rows + 1) // 2 for s in self.segments)
