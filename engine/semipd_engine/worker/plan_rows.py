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
from semipd_engine.model.batch import Batch, Segment
from semipd_engine.model.errors import PlanError
from semipd_engine.model.rope import RotaryEmbedding

Ints = npt.NDArray[np.int64]


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
        segments.append(Segment(first, rows, chunk.start, torch.from_numpy(table).to(device)))
        first += rows
    cos, sin = rotary(_tensor(np.concatenate(positions), device))
    batch = Batch(_tensor(np.concatenate(slots), device), cos, sin, segments=tuple(segments))
    return _tensor(np.concatenate(tokens), device), batch


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
        self._tables = np.stack([np.pad(table, (0, width - len(table))) for table in tables])
        self._tensors = tuple(torch.from_numpy(table).to(device) for table in tables)

    def batch(self) -> tuple[Tensor, Batch]:
        """Token ids int64 [B] and the batch of the step that comes next."""
        size, at = self._limits.block_size, self._positions
        blocks = self._tables[np.arange(len(at)), at // size]
        cos, sin = self._rotary(_tensor(at, self._device))
        slots = _tensor(_slots(blocks, at, size), self._device)
        contexts = tuple((at + 1).tolist())
        return _tensor(self._tokens, self._device), Batch(
            slots, cos, sin, block_tables=self._tensors, context_lens=contexts
        )

    def advance(self, tokens: Sequence[int], running: Sequence[int]) -> None:
        """Each row took its token of `tokens`; only the rows with the indices `running` go on."""
        keep = np.asarray(running, np.int64)
        self._tokens = np.asarray(tokens, np.int64)[keep]
        self._positions = self._positions[keep] + 1
        if len(keep) < len(self._tensors):
            self._tables = self._tables[keep]
            self._tensors = tuple(self._tensors[i] for i in running)


def _slots(blocks: Ints, positions: Ints, block_size: int) -> Ints:
    return blocks * block_size + positions % block_size


def _tensor(values: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)
