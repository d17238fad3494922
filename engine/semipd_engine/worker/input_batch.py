"""The rows of a plan that still run, as the batch of each of its steps; checked before the model runs.

A plan that points outside the pool, the vocabulary or the model's length is refused with the request's name: it would
read or write memory of other requests. Knows nothing of phases: a row has any number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semipd_engine.ipc.steps import StepPlan
from semipd_engine.model.batch import Batch

Ints = npt.NDArray[np.int32]


class PlanError(Exception):
    """A plan that cannot be executed; `request` names the culprit where one is known."""

    def __init__(self, message: str, request: int | None = None) -> None:
        super().__init__(message)
        self.request = request


@dataclass(frozen=True)
class Limits:
    """What a plan may refer to."""

    vocab_size: int
    num_blocks: int
    block_size: int
    max_model_len: int

    @property
    def most_blocks(self) -> int:
        """Of one sequence."""
        return -(-self.max_model_len // self.block_size)

    def check(self, request: int, tokens: Ints, positions: range, table: Ints) -> None:
        """Raises `PlanError` unless these tokens at these positions, under this block table, can be computed."""
        if not len(tokens):
            raise PlanError("the plan has no tokens", request)
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise PlanError(f"token ids must lie in [0, {self.vocab_size})", request)
        if positions.start < 0:
            raise PlanError(f"position {positions.start} is outside the model length {self.max_model_len}", request)
        self.check_blocks(request, positions.stop, 0, table)

    def check_blocks(self, request: int, end: int, held: int, more: Ints) -> None:
        """Raises `PlanError` unless a table of `held` blocks that are checked, and these behind them, holds all
        positions before `end`."""
        if end > self.max_model_len:
            raise PlanError(f"position {end - 1} is outside the model length {self.max_model_len}", request)
        needed, there = -(-end // self.block_size), held + len(more)
        if there < needed:
            raise PlanError(f"the block table has {there} blocks, {needed} are needed", request)
        if there > self.most_blocks:
            raise PlanError(f"the block table has {there} blocks, {self.most_blocks} hold the longest", request)
        if len(more) and (more.min() < 0 or more.max() >= self.num_blocks):
            raise PlanError(f"block ids must lie in [0, {self.num_blocks})", request)


FEWEST = 16
"""Rows for which a buffer has room at first."""
ALIGNED = 64
"""Numbers between the beginnings of two buffers: no two share a line of a cache."""


class InputBuffers:
    """Where the inputs of a worker's steps lie: at the same addresses as long as they do not grow, so that a recorded
    step, or a captured graph, finds the next one's.

    On a GPU they are one piece of memory, and a step's inputs get there in one copy from pinned memory: it is queued,
    and nobody waits for it. A step ends when all that was queued for it is done, so the host may write again then; with
    `ahead` it may once more before, for the step that is queued behind it.
    """

    def __init__(self, device: torch.device, ahead: bool = False) -> None:
        self._device, self._ahead = device, ahead
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._numbers, self._host = self._other = host_memory(0, pinned=False)
        self._there = self._host
        self._begins: dict[str, int] = {}
        self._places: dict[str, int] = {}

    def put(self, inputs: Mapping[str, Ints]) -> dict[str, Tensor]:
        """Tensors of these values, int32, until the next call. They are neighbours, or all: what lies before and behind
        them stays as it is."""
        if not all(self._fits(name, values) for name, values in inputs.items()):
            self._grow(inputs)
        found, first, end = dict[str, Tensor](), len(self._host), 0
        places = [self._places[name] for name in inputs]
        assert max(places) - min(places) < len(places), "what lies between is copied, too"
        for name, values in inputs.items():
            begin, shape = self._begins[name], values.shape
            first, end = min(first, begin), max(end, begin + values.size)
            self._numbers[begin : begin + values.size].reshape(shape)[...] = values
            found[name] = self._there[begin : begin + values.size].view(shape)
        if self._there is not self._host:
            self._there[first:end].copy_(self._host[first:end], non_blocking=True)
            # The copy may not have been carried out when the next step's inputs are written.
            self._numbers, self._host, self._other = *self._other, (self._numbers, self._host)
        return found

    def _fits(self, name: str, values: Ints) -> bool:
        held = self._shapes.get(name)
        return held is not None and held[1:] == values.shape[1:] and held[0] >= values.shape[0]

    def _grow(self, inputs: Mapping[str, Ints]) -> None:
        """Whole or not at all: where memory is short, the next step finds what there was."""
        shapes, begins, end = dict(self._shapes), dict[str, int](), 0
        for name, values in inputs.items():
            if not self._fits(name, values):
                shapes[name] = (max(FEWEST, 2 * len(values)), *values.shape[1:])
        for name, shape in shapes.items():
            begins[name] = end
            end += -(-math.prod(shape) // ALIGNED) * ALIGNED
        pinned = self._device.type == "cuda"
        numbers, host = other = host_memory(end, pinned)
        there = host
        if self._device.type != "cpu":
            there = torch.zeros(end, dtype=torch.int32, device=self._device)
            other = host_memory(end, pinned) if self._ahead else other
        self._shapes, self._begins = shapes, begins
        self._places = {name: place for place, name in enumerate(shapes)}
        self._numbers, self._host, self._other, self._there = numbers, host, other, there


def host_memory(count: int, pinned: bool) -> tuple[Ints, Tensor]:
    """Zeros, int32 [count], to write and to copy from: one memory. A GPU copies what is `pinned` by itself."""
    tensor = torch.zeros(count, dtype=torch.int32, pin_memory=pinned)
    return tensor.numpy(), tensor


class InputBatch:
    """After its first step each row goes on with the token that it has sampled, one position a step."""

    def __init__(self, plan: StepPlan, limits: Limits, buffers: InputBuffers) -> None:
        """Raises `PlanError` if a row cannot be computed, or the plan has none."""
        if not plan.rows or plan.max_steps < 1:
            raise PlanError("the plan has no rows or no steps")
        self._limits, self._block_size, self._buffers = limits, limits.block_size, buffers
        tokens = [_ints(row.tokens, row.request) for row in plan.rows]
        tables = [_ints(row.block_table, row.request) for row in plan.rows]
        for row, ids, table in zip(plan.rows, tokens, tables, strict=True):
            if (row.sampling is None) != (row.outputs == "none") and row.outputs != "all":
                raise PlanError("a row samples if and only if its last position is an output", row.request)
            if row.targets and (plan.max_steps > 1 or len(row.targets) > len(ids)):
                raise PlanError("targets follow the positions of their row, in a plan of one step", row.request)
            if row.targets and not 0 <= min(row.targets) <= max(row.targets) < limits.vocab_size:
                raise PlanError(f"targets must lie in [0, {limits.vocab_size})", row.request)
            if row.mask is not None and plan.max_steps > 1:
                raise PlanError("a plan with a masked row has one step", row.request)
            written = row.start + len(ids)
            if row.sampling is not None:
                written += max(min(plan.max_steps, row.sampling.max_tokens - row.output_index) - 1, 0)
            limits.check(row.request, ids, range(row.start, written), table)
        self._tokens = np.concatenate(tokens)
        self._counts = np.array([len(ids) for ids in tokens], np.int32)
        self._starts = np.array([row.start for row in plan.rows], np.int32)
        self._samples = np.array([row.sampling is not None for row in plan.rows])
        self._tables = np.zeros((len(tables), limits.most_blocks), np.int32)
        for row_table, table in zip(self._tables, tables, strict=True):
            row_table[: len(table)] = table
        self._held = np.array([len(table) for table in tables], np.int64)
        """Blocks of each table."""
        self._extended = False
        """Since the tables were given out last."""
        self._tables_there: Tensor | None = None
        """Where they lie since an earlier step of the plan: by far the most of a step's inputs, and the same until a
        row has finished. Nobody else puts anything there until the plan ends."""

    @property
    def last_block(self) -> int:
        """The largest id in a table."""
        return int(self._tables.max())

    @property
    def rows(self) -> int:
        """Of the step that comes next."""
        return len(self._tokens)

    @property
    def decodes(self) -> bool:
        """Is each row of the step that comes next one token that samples?"""
        return bool((self._counts == 1).all() and self._samples.all())

    def next(self) -> tuple[Batch, Tensor]:
        """The batch of the step that comes next, and the indices int32 [R] of its rows to sample from."""
        inputs = self.arrays()
        visible = int(inputs["positions"].sum(dtype=np.int64)) + len(inputs["positions"])
        if (tables := self._tables_there) is not None:
            del inputs["block_tables"]
        put = self._buffers.put(inputs)
        tables = self._tables_there = put.pop("block_tables") if tables is None else tables
        sampled = put.pop("sampled")
        return Batch(**put, block_tables=tables, visible=visible), sampled

    def arrays(self) -> dict[str, Ints]:
        """Its inputs by name, `sampled` beside the tensors of a `Batch`."""
        counts, size = self._counts, self._block_size
        ends = np.cumsum(counts, dtype=np.int32)
        firsts = ends - counts
        self._extended = False
        if len(counts) == ends[-1]:
            positions, blocks = self._starts, self._tables[np.arange(len(counts)), self._starts // size]
        else:
            positions = np.repeat(self._starts - firsts, counts) + np.arange(ends[-1], dtype=np.int32)
            blocks = self._tables[np.repeat(np.arange(len(counts)), counts), positions // size]
        return {
            "token_ids": self._tokens,
            "positions": positions,
            "slot_mapping": self._slots(blocks, positions),
            "seq_lens": self._starts + counts,
            "query_start_loc": np.concatenate((np.zeros(1, np.int32), ends)),
            "sampled": ends[self._samples] - 1,
            "block_tables": self._tables,
        }

    def following(self, going: Sequence[int], sources: Sequence[int], before: int) -> dict[str, Ints]:
        """What changes with the step after it, of these of its rows, which all decode. Their tokens are not known yet:
        they lie at `sources` among those of a step of `before` rows. The tables change where a row has left that step,
        or where they were extended."""
        positions = self._starts + 1
        positions, own = positions[list(going)], self._tables[list(going)]
        blocks = own[np.arange(len(positions)), positions // self._block_size]
        tables = {"block_tables": own} if self._extended or len(sources) < before else {}
        self._extended = False
        return {
            "sources": np.array(sources, np.int32),
            "positions": positions,
            "slot_mapping": self._slots(blocks, positions),
            "seq_lens": positions + 1,
            **tables,
        }

    def _slots(self, blocks: Ints, positions: Ints) -> Ints:
        slots: Ints = blocks * self._block_size + positions % self._block_size
        return slots

    def extend(self, requests: Sequence[int], blocks: Sequence[Sequence[int]], steps: Sequence[int]) -> None:
        """Put these blocks behind each row's, which all decode, for so many steps after the one that comes next. Raises
        `PlanError`; then nothing may be run any more."""
        for place, (request, more, count) in enumerate(zip(requests, blocks, steps, strict=True)):
            held, added = int(self._held[place]), _ints(more, request)
            self._limits.check_blocks(request, int(self._starts[place]) + 1 + count, held, added)
            self._tables[place, held : held + len(added)] = added
            self._held[place] += len(added)
        if any(blocks):
            self._extended, self._tables_there = True, None

    def advance(self, tokens: Sequence[int], running: Sequence[int]) -> None:
        """Each row that samples took its token of `tokens`; only those of them with the indices `running` go on."""
        going = np.asarray(running, np.int64)
        keep = np.flatnonzero(self._samples)[going]
        self._tokens = np.asarray(tokens, np.int32)[going]
        self._starts = self._starts[keep] + self._counts[keep]
        self._counts, self._samples = np.ones(len(keep), np.int32), np.ones(len(keep), np.bool_)
        if len(keep) < len(self._tables):
            self._tables, self._held, self._tables_there = self._tables[keep], self._held[keep], None


def _ints(values: Sequence[int], request: int) -> Ints:
    """Raises `PlanError` for what no index can be."""
    try:
        return np.asarray(values, np.int32)
    except OverflowError as error:
        raise PlanError(f"token and block ids must lie in [0, 2 ** 31): {error}", request) from error
