"""What a layer is made of: stages, each of which runs a range of its own axis. And what a stage costs.

A matrix product's axis is its panels of output features, so that however it is cut each weight is read once; the other
stages' axis is their rows. Stages know buffers and kernels; they know no pacer, no time and no thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from semipd_engine.memory.shared import HUGE_PAGE, map_anonymous
from semipd_engine.model.batch import Batch


@dataclass(frozen=True)
class Work:
    """What all units of a stage do together."""

    read: int = 0
    """Bytes that must come from memory: weights, keys and values, activations."""
    products: int = 0
    """Multiply-adds of matrix products."""
    gathered: int = 0
    """Those of products whose rows are gathered: of experts, and of heads."""
    scores: int = 0
    """Multiply-adds of attention."""
    latent: int = 0
    """Those of latent attention."""


ROWS_TOGETHER = 64
"""By which a buffer grows: prompts of slightly different lengths find it where it was."""


class Workspace:
    """The buffers between stages: ``[T, width]`` each, of one memory that grows to the largest batch and stays.

    So a step allocates nothing, and a stage finds its rows at the same address as long as T does not outgrow it.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._held: dict[str, Tensor] = {}
        self.version = 0
        """Changes with every address."""

    def fresh(self) -> Workspace:
        """Another of this kind, without buffers."""
        return Workspace(self._dtype, self._device)

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the model's dtype."""
        return self._dtype.itemsize

    def rows(self, name: str, rows: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """``[rows, width]``, undefined content; of the model's dtype unless another is named."""
        held = self._held.get(name)
        if held is None or held.shape[0] < rows:
            room = rows if rows < ROWS_TOGETHER else -(-rows // ROWS_TOGETHER) * ROWS_TOGETHER  # a prompt's grow
            held = self._made(room, width, dtype or self._dtype)
            self._held[name] = held
            self.version += 1
        return held[:rows]

    def _made(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """On a CPU a prompt's buffers lie in huge pages: a product's tile touches a page for each of its rows. They
        begin at the first one of a larger room: kernels before 6.7 map at any page."""
        nbytes = rows * width * dtype.itemsize
        if self._device.type != "cpu" or nbytes < HUGE_PAGE // 2:
            return torch.empty(rows, width, dtype=dtype, device=self._device)
        room = map_anonymous((-(-nbytes // HUGE_PAGE) + 1) * HUGE_PAGE)
        first = -room.data_ptr() % HUGE_PAGE
        return room[first : first + nbytes].view(dtype).view(rows, width)


SAME_COST = 1024
"""Positions seen, all rows together: steps that differ by less are cut alike."""


@dataclass
class Step:
    """One forward pass: the batch, and the rows between stages by name."""

    batch: Batch
    workspace: Workspace
    _views: dict[str, Tensor] = field(default_factory=dict)

    @property
    def form(self) -> tuple[int, ...]:
        """Steps of the same form make the same kernel calls, of about the same cost: they have as many rows, at the
        same addresses, and see about as much."""
        batch = self.batch
        tensors = (batch.slot_mapping, batch.block_tables, batch.seq_lens, batch.query_start_loc)
        addresses = (tensor.data_ptr() for tensor in tensors)
        sizes = (batch.rows, len(batch.seq_lens), batch.block_tables.stride(0), batch.visible // SAME_COST)
        return (self.workspace.version, *sizes, *addresses)

    def rows(self, name: str, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """The buffer `name` of this step, ``[T, width]``. All stages that name it mean the same one."""
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = self.workspace.rows(name, self.batch.rows, width, dtype)
        return view


class Stage(Protocol):
    recordable: bool
    """All that `run` does is kernel calls that can be recorded, over addresses that `Step.form` knows."""

    def units(self, step: Step) -> int:
        """Length of its axis in this step."""

    def work(self, step: Step) -> Work:
        """What all units do together."""

    def run(self, step: Step, begin: int, end: int) -> None:
        """Do units begin .. end - 1. Ranges may come in any sizes, in order, and cover the axis once."""
