"""Which waiting prompt is admitted, and when: first come, first served, its blocks reserved whole.

Whole, so that partial prefills cannot deadlock against decode. A prompt whose next block somebody else is computing
right now waits for that block instead of computing it a second time; those behind it go on. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Iterator

from semipd_engine.core.fault_isolation import is_suspect
from semipd_engine.core.kv_cache_manager import KVCacheManager, extend_digests
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.request_table import RequestTable


class WaitingQueue:
    def __init__(self, table: RequestTable, max_num_seqs: int) -> None:
        self._table = table
        self._max_num_seqs = max_num_seqs

    @property
    def _kv(self) -> KVCacheManager:
        return self._table.kv

    def newly_admitted(self, now: float) -> Iterator[Request]:
        """Admit one after the other, as long as somebody asks. What can never run is answered with an error."""
        for request in list(self._table.waiting):
            if self._table.num_running >= self._max_num_seqs:
                return
            if self._kv.blocks_for(len(request.token_ids)) > self._kv.pool.num_blocks:
                self._table.fail(request, too_large(self._kv, len(request.token_ids)))
                continue
            if self._kv.prefix_caching:
                extend_digests(request.digests, request.token_ids, self._kv.block_size, request.cache_salt)
                if self._is_being_computed(request):
                    continue
            if not self._admit(request, now):
                return
            yield request

    def _admit(self, request: Request, now: float) -> bool:
        # Each running request is at most one block away from asking for its next one: leave it that block.
        blocks = self._kv.admit(request.digests, len(request.token_ids), reserve=self._table.num_running)
        if blocks is None:
            return False
        self._table.admit(request, blocks)
        if request.scheduled_at is None:
            request.scheduled_at = now
            request.cached_tokens = blocks.num_cached_tokens
        return True

    def _is_being_computed(self, request: Request) -> bool:
        """Will the first block that the prefix cache lacks for this prompt be there soon?

        A digest stands for all tokens up to its block's end, so it is looked for at one index only. A suspect is not
        waited for: it may never get further.
        """
        index = self._kv.cached_blocks(request.digests, len(request.token_ids))
        if index >= self._kv.shareable_blocks(len(request.token_ids)):
            return False
        return any(
            other.digests[index] == request.digests[index]
            for other in self._table.in_state(RequestState.PREFILLING)
            if index < len(other.digests) and not is_suspect(other)
        )


def too_large(kv: KVCacheManager, num_tokens: int) -> str:
    capacity = kv.pool.num_blocks * kv.block_size
    return f"{num_tokens} tokens do not fit the KV cache of {capacity}: raise --kv-cache-memory"
