"""Which waiting prompt is admitted, and when: in the order of their turns (`Request.turn`), its blocks reserved whole.

Whole, so that partial prefills cannot deadlock against decode. A prompt whose next block somebody else is computing
right now waits for that block instead of computing it a second time; those behind it go on. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from semipd_engine.core.fault_isolation import is_suspect
from semipd_engine.core.kv_cache_manager import KVCacheManager, extend_digests
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.request_table import TURN, RequestTable

LOOKED_AT = 2048
"""Work on waiting prompts for one plan, in blocks that are hashed, one prompt's excepted: everybody waits meanwhile."""
LOOK = 8
"""What it costs to look for a prompt's next block the first time."""
FOUND_FOR_ONE, SHARED_FOR_ONE = 8, 2
"""So many blocks are found in the cache, or shared, while one is hashed."""


class WaitingQueue:
    def __init__(self, table: RequestTable, max_num_seqs: int) -> None:
        self._table = table
        self._max_num_seqs = max_num_seqs
        self._looked_at = 0

    @property
    def _kv(self) -> KVCacheManager:
        return self._table.kv

    def in_turn(self, prompts: Iterable[Request], now: float) -> Iterator[Request]:
        """`prompts` that are admitted already and those that wait, in the order of their turns. One that waits is
        admitted when its turn comes, as long as somebody asks. What can never run is answered with an error."""
        admitted = sorted(prompts, key=TURN)
        self._looked_at = 0
        for request in list(self._table.waiting):
            while admitted and admitted[0].turn < request.turn:
                yield admitted.pop(0)
            if self._table.num_running >= self._max_num_seqs or self._looked_at > LOOKED_AT:
                break
            if not self._may_begin(request):
                continue
            if not self._admit(request, now):
                break  # nobody passes one whose blocks are not there
            yield request
        yield from admitted

    def _may_begin(self, request: Request) -> bool:
        if self._kv.blocks_for(len(request.token_ids)) > self._kv.pool.num_blocks:
            self._table.fail(request, too_large(self._kv, len(request.token_ids)))
            return False
        if not self._kv.prefix_caching:
            return True
        before = len(request.digests)
        extend_digests(request.digests, request.token_ids, self._kv.block_size, request.cache_salt)
        self._looked_at += len(request.digests) - before
        return request.scores_prompt or not self._is_being_computed(request)

    def _admit(self, request: Request, now: float) -> bool:
        # Each running request is at most one block away from asking for its next one: leave it that block.
        digests = [] if request.scores_prompt else request.digests
        blocks = self._kv.admit(digests, len(request.token_ids), reserve=self._table.num_running)
        if blocks is None:
            return False
        self._looked_at += LOOK + blocks.num_published // SHARED_FOR_ONE
        self._table.admit(request, blocks)
        request.last_chunk_at = now
        if request.scheduled_at is None:
            request.scheduled_at = now
            request.cached_tokens = blocks.num_cached_tokens
        return True

    def _is_being_computed(self, request: Request) -> bool:
        """Will the first block that the prefix cache lacks for this prompt be there soon?

        A digest stands for all tokens up to its block's end, so it is looked for at one index only. A suspect is not
        waited for: it may never get further. Of many that wait for the same, each is looked up once, not in each plan.
        """
        if request.waits_for is not None:
            other, index = request.waits_for
            if _computes(other, request, index) and self._kv.pool.find(request.digests[index]) is None:
                return True
            request.waits_for = None
        index = self._kv.cached_blocks(request.digests, len(request.token_ids))
        self._looked_at += LOOK + index // FOUND_FOR_ONE
        if index >= self._kv.shareable_blocks(len(request.token_ids)):
            return False
        for other in self._table.in_state(RequestState.PREFILLING):
            if _computes(other, request, index):
                request.waits_for = (other, index)
                return True
        return False


def _computes(other: Request, request: Request, index: int) -> bool:
    """Is `other` on its way to the block at `index` of `request`?"""
    return (
        other.state is RequestState.PREFILLING
        and index < len(other.digests)
        and other.digests[index] == request.digests[index]
        and not is_suspect(other)
    )


def too_large(kv: KVCacheManager, num_tokens: int) -> str:
    capacity = kv.pool.num_blocks * kv.block_size
    return f"{num_tokens} tokens do not fit the KV cache of {capacity}: raise --kv-cache-memory"
