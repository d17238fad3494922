"""Takes pages of the KV pool from the machine before a step needs them. Knows blocks, and nothing of who writes them.

A page costs some 7 us when it is first touched, and a prompt of 512 tokens touches thousands. Blocks are handed out in
ascending order as long as there are untouched ones (`core.block_pool`), so the next ones are known. The pool stays as
lazy as it was: no more than a bounded part of it is ahead of what has been used.
"""

from __future__ import annotations

from semipd_engine.memory.kv_pool import KVPool

AHEAD_BYTES = 48 << 20
"""Of the pool, beyond the last block that was used."""
PIECE_BYTES = 1 << 20
"""At a time: about 2 ms, for which a plan that arrives meanwhile has to wait."""


class PagesAhead:
    """One for each worker: a page that another process took has still to be mapped by this one."""

    def __init__(self, pool: KVPool, ahead_bytes: int = AHEAD_BYTES, piece_bytes: int = PIECE_BYTES) -> None:
        self._pool = pool
        self._ahead, self._piece = (max(1, part // pool.layout.block_bytes) for part in (ahead_bytes, piece_bytes))
        self._taken = 0
        """Blocks from 0 on that are mapped."""
        self._wanted = min(self._ahead, pool.num_blocks)

    def used(self, block: int) -> None:
        """A step reads or writes it."""
        self._wanted = max(self._wanted, min(block + 1 + self._ahead, self._pool.num_blocks))

    def take_some(self) -> bool:
        """Take one piece. Is there more to take?"""
        if self._taken < self._wanted:
            end = min(self._taken + self._piece, self._wanted)
            self._taken = end if self._pool.take_pages(self._taken, end) else self._pool.num_blocks
        return self._taken < self._wanted
