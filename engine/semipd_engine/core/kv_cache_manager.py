"""Blocks of a sequence: prefix reuse at admission, growth while it decodes, publication of full blocks.

A block's digest chains over all tokens up to its end, so equal digests mean equal K/V. Knows sequences of token ids and
the pool; knows neither scheduling nor workers.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from semipd_engine.core.block_pool import BlockPool, LastSteps


@dataclass
class SequenceBlocks:
    """What one admitted sequence holds. The table is append-only while it is held."""

    table: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    """Leading tokens whose K/V came from the prefix cache; always a multiple of the block size."""
    num_published: int = 0
    """Leading blocks whose digest has been published (or was found published)."""


def extend_digests(digests: list[bytes], tokens: Sequence[int], block_size: int, salt: bytes = b"") -> None:
    """Append the chained digests of the full blocks of `tokens` that `digests` lacks. `salt` comes before the first."""
    for index in range(len(digests), len(tokens) // block_size):
        parent = digests[-1] if digests else salt
        content = array("q", tokens[index * block_size : (index + 1) * block_size]).tobytes()
        digests.append(hashlib.blake2b(parent + content, digest_size=16).digest())


class KVCacheManager:
    def __init__(self, pool: BlockPool, block_size: int, prefix_caching: bool = True) -> None:
        self.pool = pool
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.queries_tokens = 0
        self.hits_tokens = 0

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def shareable_blocks(self, num_tokens: int) -> int:
        """Leading blocks of a prompt that may come from the cache: at least its last token is computed."""
        return (num_tokens - 1) // self.block_size if self.prefix_caching else 0

    def cached_blocks(self, digests: Sequence[bytes], num_tokens: int) -> int:
        """Leading blocks of a prompt that are in the cache now."""
        return len(self._find_prefix(digests, self.shareable_blocks(num_tokens)))

    def admit(self, digests: Sequence[bytes], num_tokens: int, reserve: int) -> SequenceBlocks | None:
        """Blocks for a whole prompt of `num_tokens` tokens, reused where the prefix is cached.

        At least the last token is left to compute, and no shared block is ever written. None, and nothing taken, if
        fewer than `reserve` blocks would stay available.
        """
        hits = self._find_prefix(digests, self.shareable_blocks(num_tokens))
        for block in hits:
            self.pool.share(block)
        missing = self.blocks_for(num_tokens) - len(hits)
        if self.pool.available < missing + reserve:
            self.pool.release(reversed(hits), LastSteps())
            return None
        self.queries_tokens += num_tokens
        self.hits_tokens += len(hits) * self.block_size
        return SequenceBlocks(
            table=hits + self.pool.allocate(missing),
            num_cached_tokens=len(hits) * self.block_size,
            num_published=len(hits),
        )

    def grow(self, blocks: SequenceBlocks, num_tokens: int) -> bool:
        """Extend the table to hold `num_tokens` positions. False, and nothing taken, if blocks are short."""
        missing = self.blocks_for(num_tokens) - len(blocks.table)
        if missing > self.pool.available:
            return False
        if missing > 0:
            blocks.table += self.pool.allocate(missing)
        return True

    def has_unpublished(self, blocks: SequenceBlocks, num_computed: int) -> bool:
        """Would `publish` have anything to do?"""
        return self.prefix_caching and num_computed // self.block_size > blocks.num_published

    def publish(
        self,
        blocks: SequenceBlocks,
        digests: list[bytes],
        tokens: Sequence[int],
        num_computed: int,
        salt: bytes = b"",
    ) -> None:
        """Publish the blocks filled by the first `num_computed` of `tokens`; their steps are reported complete."""
        if not self.has_unpublished(blocks, num_computed):
            return
        full = num_computed // self.block_size
        extend_digests(digests, tokens[: full * self.block_size], self.block_size, salt)
        for index in range(blocks.num_published, full):
            self.pool.publish(blocks.table[index], digests[index])
        blocks.num_published = full

    def release(self, blocks: SequenceBlocks, last: LastSteps) -> None:
        """Give everything back; a prefix's end is evicted before its beginning."""
        self.pool.release(reversed(blocks.table), last)
        blocks.table = []

    def _find_prefix(self, digests: Sequence[bytes], limit: int) -> list[int]:
        hits: list[int] = []
        for digest in digests[:limit]:
            block = self.pool.find(digest)
            if block is None:
                break
            hits.append(block)
        return hits
