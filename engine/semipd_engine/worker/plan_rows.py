"""Plans to batches: positions, slots and block tables of each step as tensors, checked before the model runs.

A plan that points outside the pool, the vocabulary or the model's length is refused with the request's name: it would
read or write memory of other requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semipd_engine.ipc.messages import StepPlan
from semipd_engine.model.batch import Batch, Group, Segment
from semipd_engine.model.errors import PlanError
from semipd_engine.model.rope import RotaryEmbedding
from semipd_engine.ops.torch_ref import length_mask

Ints = npt.NDArray[np.int64]
GROUP_WASTE = 0.3
GROUP_POSITIONS = {"cpu": 4096, "cuda": 16384}
"""One operation costs some 50 µs whatever its size, so short contexts are worth padding; a long one fills it alone. On
a GPU the bound is for the gathered copies, which its attention widens to all query heads and to float32."""


class Limits:
    """What a plan may refer to."""

    def __init__(self, vocab_size: int, num_blocks: int, block_size: int, max_model_len: int) -> None:
        self.vocab_size = vocab_size
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_model_len = max_model_len

    def check(self, request: int, tokens: Ints, positions: range, table: Ints) -> None:
        """Raises `PlanError` unless these tokens at these positions, under this block table, can be computed."""
        if not len(tokens):
            raise PlanError("the plan has no tokens", request)
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise PlanError(f"token ids must lie in [0, {self.vocab_size})", request)
        if positions.start < 0 or positions.stop > self.max_model_len:
            raise PlanError(f"position {positions.stop - 1} is outside the model length {self.max_model_len}", request)
        needed = -(-positions.stop // self.block_size)
        if len(table) < needed:
            raise PlanError(f"the block table has {len(table)} blocks, {needed} are needed", request)
        if table.min() < 0 or table.max() >= self.num_blocks:
            raise PlanError(f"block ids must lie in [0, {self.num_blocks})", request)


class PlanRows:
    """The rows of a plan that still run. After the first step each goes on with the token that it has sampled."""

    def __init__(self, plan: StepPlan, limits: Limits, rotary: RotaryEmbedding, device: torch.device) -> None:
        """Raises `PlanError` if a row cannot be computed, or the plan has none."""
        if not plan.rows or plan.max_steps < 1:
            raise PlanError("the plan has no rows or no steps")
        self._limits, self._rotary, self._device = limits, rotary, device
        tokens = [np.asarray(row.tokens, np.int64) for row in plan.rows]
        tables = [np.asarray(row.block_table, np.int64) for row in plan.rows]
        for row, ids, table in zip(plan.rows, tokens, tables, strict=True):
            if (row.sampling is None) != (row.outputs == "none"):
                raise PlanError("a row samples if and only if its last position is an output", row.request)
            if row.mask is not None and plan.max_steps > 1:
                raise PlanError("a plan with a masked row has one step", row.request)
            written = row.start + len(ids)
            if row.sampling is not None:
                written += max(min(plan.max_steps, row.sampling.max_tokens - row.output_index) - 1, 0)
            limits.check(row.request, ids, range(row.start, written), table)
        self._tokens = np.concatenate(tokens)
        self._counts = np.array([len(ids) for ids in tokens], np.int64)
        self._starts = np.array([row.start for row in plan.rows], np.int64)
        self._samples = np.array([row.sampling is not None for row in plan.rows])
        width = max(len(table) for table in tables)
        # Padding repeats a block of the sequence itself: masked, and never a stranger's.
        self._tables = np.stack([np.pad(table, (0, width - len(table)), mode="edge") for table in tables])

    def batch(self) -> tuple[Tensor, Batch, Tensor]:
        """Token ids int64 [T], the batch of the step that comes next, and the indices int64 [R] of the positions to
        sample from, in the order of the rows."""
        counts, size = self._counts, self._limits.block_size
        ends = np.cumsum(counts)
        firsts = ends - counts
        positions = np.repeat(self._starts - firsts, counts) + np.arange(ends[-1])
        blocks = self._tables[np.repeat(np.arange(len(counts)), counts), positions // size]
        cos, sin = self._rotary(on_device(positions, self._device))
        single = np.flatnonzero(counts == 1)
        most = GROUP_POSITIONS[self._device.type]
        batch = Batch(
            on_device(blocks * size + positions % size, self._device),
            cos,
            sin,
            segments=tuple(self._segment(row, int(firsts[row])) for row in np.flatnonzero(counts > 1).tolist()),
            groups=tuple(
                self._group(single[members], firsts[single[members]])
                for members in similar_lengths((self._starts[single] + 1).tolist(), most)
            ),
        )
        chosen = ends[self._samples] - 1
        return on_device(self._tokens, self._device), batch, on_device(chosen, self._device)

    def advance(self, tokens: Sequence[int], running: Sequence[int]) -> None:
        """Each row that samples took its token of `tokens`; only those of them with the indices `running` go on."""
        keep = np.flatnonzero(self._samples)[np.asarray(running, np.int64)]
        self._tokens = np.asarray(tokens, np.int64)[np.asarray(running, np.int64)]
        self._starts = self._starts[keep] + self._counts[keep]
        self._counts, self._samples = np.ones_like(keep), np.ones(len(keep), np.bool_)
        self._tables = self._tables[keep]

    def _segment(self, row: int, first: int) -> Segment:
        table = on_device(self._tables[row], self._device)
        return Segment(first, int(self._counts[row]), int(self._starts[row]), table)

    def _group(self, rows: Ints, indices: Ints) -> Group:
        """`rows` of this object, which are at `indices` in the batch."""
        lengths = self._starts[rows] + 1
        context = int(lengths.max())
        tables = self._tables[rows, : -(-context // self._limits.block_size)]
        mask = None if lengths.min() == context else length_mask(on_device(lengths, self._device), context)
        return Group(on_device(indices, self._device), on_device(tables, self._device), context, mask)


def allowed_tokens(mask: bytes, vocab_size: int) -> Tensor:
    """A row's mask as a bool tensor [vocab]; tokens behind its end are forbidden."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=vocab_size, bitorder="little")
    return torch.from_numpy(bits.astype(np.bool_))


def similar_lengths(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices of `lengths` in groups: padding to a group's longest adds at most `GROUP_WASTE` to each member, and a
    group of several has at most `most` positions in all."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = bool(groups) and (len(groups[-1]) + 1) * longest <= most
        if room and longest <= lengths[index] * (1 + GROUP_WASTE):
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = lengths[index]
    return groups


def on_device(values: Ints, device: torch.device) -> Tensor:
    """int64. To a GPU from pinned memory, so that the copy is queued behind the kernels and nobody waits for it."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
