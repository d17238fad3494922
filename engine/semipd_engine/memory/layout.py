"""The paged KV pool described as data. Torch-free: core sizes blocks with it, workers build views from it.

One pool holds, for each layer and each of its components, `num_blocks` x `block_size` entries of `width` elements.
Standard attention has two components of kv_heads x head_dim each; latent attention (MLA) has one of
kv_lora_rank + rope_dim. The pool is laid out component-major::

    component 0: [layers, num_blocks, block_size, width 0]
    component 1: [layers, num_blocks, block_size, width 1]
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KVComponent:
    """One vector that each token leaves in each layer."""

    name: str
    width: int
    """Elements for one token and layer."""


@dataclass(frozen=True)
class KVLayout:
    num_layers: int
    components: tuple[KVComponent, ...]
    block_size: int
    itemsize: int
    """Bytes of an element."""

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes over all layers."""
        return self.num_layers * sum(c.width for c in self.components) * self.itemsize

    @property
    def block_bytes(self) -> int:
        return self.block_size * self.token_bytes

    def pool_bytes(self, num_blocks: int) -> int:
        return num_blocks * self.block_bytes

    def component_offset(self, index: int, num_blocks: int) -> int:
        """Byte offset of a component's array inside the pool."""
        before = sum(c.width for c in self.components[:index])
        return before * self.num_layers * num_blocks * self.block_size * self.itemsize
