"""The paged KV pool as tensors: `KVLayout` laid over one shared region.

Knows no heads: an entry is a vector of `width` elements, so latent attention fits as well. Who may write which block
is the core's business; nothing is checked here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.memory.layout import KVLayout
from semipd_engine.memory.region import Region
from semipd_engine.memory.shared import take_pages

CPU = torch.device("cpu")


class KVPool:
    def __init__(self, layout: KVLayout, num_blocks: int, region: Region, dtype: torch.dtype) -> None:
        """The pool that lies in `region` (made by `create`, here or in another process)."""
        if dtype.itemsize != layout.itemsize:
            raise ValueError(f"layout has elements of {layout.itemsize} bytes, {dtype} has {dtype.itemsize}")
        self.layout = layout
        self.num_blocks = num_blocks
        self.dtype = dtype
        self.region = region
        if region.nbytes < layout.pool_bytes(num_blocks):
            raise ValueError(f"the region has {region.nbytes} bytes, {layout.pool_bytes(num_blocks)} are needed")
        self._components: list[Tensor] = []
        for index, component in enumerate(layout.components):
            shape = (layout.num_layers, num_blocks, layout.block_size, component.width)
            begin = layout.component_offset(index, num_blocks)
            end = begin + layout.num_layers * num_blocks * layout.block_size * component.width * layout.itemsize
            self._components.append(region.data[begin:end].view(dtype).view(shape))

    @classmethod
    def create(cls, layout: KVLayout, num_blocks: int, dtype: torch.dtype, device: torch.device = CPU) -> KVPool:
        """A new zeroed pool. On the CPU pages are taken from the machine when they are first touched."""
        return cls(layout, num_blocks, Region.create("semipd-kv", layout.pool_bytes(num_blocks), device), dtype)

    def take_pages(self, first: int, last: int) -> bool:
        """Blocks first .. last - 1 need no page from the machine any more when this process writes them. False where
        that cannot be had, as on a GPU, whose memory is all there."""
        if self.region.data.device.type != "cpu":
            return False
        for index, component in enumerate(self.layout.components):
            block = self.layout.block_size * component.width * self.layout.itemsize
            for layer in range(self.layout.num_layers):
                begin = self.layout.component_offset(index, self.num_blocks) + layer * self.num_blocks * block
                if not take_pages(self.region.data, begin + first * block, begin + last * block):
                    return False
        return True

    @property
    def block_size(self) -> int:
        """Tokens in one block."""
        return self.layout.block_size

    @property
    def nbytes(self) -> int:
        return self.layout.pool_bytes(self.num_blocks)

    def layer(self, layer: int) -> tuple[Tensor, ...]:
        """This layer's view of each component: [num_blocks, block_size, width]."""
        return tuple(component[layer] for component in self._components)
