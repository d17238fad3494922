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

from semipd_engine.ipc.messages import DecodeRow, PrefillChunk
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


def prefill_batch(
    chunks: Sequence[PrefillChunk], limits: Limits, rotary: RotaryEmbedding, device: torch.device
) -> tuple[Tensor, Batch]:
    """Token ids int64 [T] and the batch of all chunks' rows, in order."""
    tokens, positions, slots, segments, first = [], [], [], [], 0
    for chunk in chunks:
        ids, table = np.asarray(chunk.token_ids, np.int64), np.asarray(chunk.block_table, np.int64)
        rows = len(ids)
        limits.check(chunk.request, ids, range(chunk.start, chunk.start + rows), table)
        at = np.arange(chunk.start, chunk.start + rows)
        tokens.append(ids)
        positions.append(at)
        slots.append(_slots(table[at // limits.block_size], at, limits.block_size))
        segments.append(Segment(first, rows, chunk.start, on_device(table, device)))
        first += rows
    cos, sin = rotary(on_device(np.concatenate(positions), device))
    batch = Batch(on_device(np.concatenate(slots), device), cos, sin, segments=tuple(segments))
    return on_device(np.concatenate(tokens), device), batch


class DecodeRows:
    """The rows of a decode plan that still run. Advances by one position a step; finished rows are dropped."""

    def __init__(
        self, rows: Sequence[DecodeRow], max_steps: int, limits: Limits, rotary: RotaryEmbedding, device: torch.device
    ) -> None:
        self._limits, self._rotary, self._device = limits, rotary, device
        self._tokens = np.array([row.token for row in rows], np.int64)
        self._positions = np.array([row.position for row in rows], np.int64)
        tables = [np.asarray(row.block_table, np.int64) for row in rows]
        for row, table in zip(rows, tables, strict=True):
            steps = min(max_steps, max(row.sampling.max_tokens - row.output_index, 1))
            written = range(row.position, row.position + steps)
            limits.check(row.request, np.array([row.token], np.int64), written, table)
        width = max(len(table) for table in tables)
        # Padding repeats a block of the sequence itself: masked, and never a stranger's.
        self._tables = np.stack([np.pad(table, (0, width - len(table)), mode="edge") for table in tables])

    def batch(self) -> tuple[Tensor, Batch]:
        """Token ids int64 [B] and the batch of the step that comes next."""
        size, at = self._limits.block_size, self._positions
        blocks = self._tables[np.arange(len(at)), at // size]
        cos, sin = self._rotary(on_device(at, self._device))
        slots = on_device(_slots(blocks, at, size), self._device)
        most = GROUP_POSITIONS[self._device.type]
        groups = tuple(self._group(rows) for rows in similar_lengths((at + 1).tolist(), most))
        return on_device(self._tokens, self._device), Batch(slots, cos, sin, groups=groups)

    def advance(self, tokens: Sequence[int], running: Sequence[int]) -> None:
        """Each row took its token of `tokens`; only the rows with the indices `running` go on."""
        keep = np.asarray(running, np.int64)
        self._tokens = np.asarray(tokens, np.int64)[keep]
        self._positions = self._positions[keep] + 1
        self._tables = self._tables[keep]

    def _group(self, rows: Sequence[int]) -> Group:
        indices = np.asarray(rows, np.int64)
        lengths = self._positions[indices] + 1
        context = int(lengths.max())
        tables = self._tables[indices, : -(-context // self._limits.block_size)]
        mask = None if lengths.min() == context else length_mask(on_device(lengths, self._device), context)
        return Group(on_device(indices, self._device), on_device(tables, self._device), context, mask)


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


def _slots(blocks: Ints, positions: Ints, block_size: int) -> Ints:
    return blocks * block_size + positions % block_size


def on_device(values: Ints, device: torch.device) -> Tensor:
    """int64. To a GPU from pinned memory, so that the copy is queued behind the kernels and nobody waits for it."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
