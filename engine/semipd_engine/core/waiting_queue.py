"""Which waiting prompt is admitted, and when: in the order of their turns (`patience`), its blocks reserved whole.

Whole, so that partial prefills cannot deadlock against decode. A prompt whose next block somebody else is computing
right now waits for that block instead of computing it a second time; those behind it go on. Knows nothing of plans.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from semipd_engine.core.fault_isolation import is_suspect
from semipd_engine.core.kv_cache_manager import KVCacheManager, extend_digests
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.request_table import RequestTable

USUAL_TARGET = 1.0
"""Seconds: the time to the first token that a request without a word of its own is taken to want."""
LONGEST_TARGET = 30.0
PRIORITY_SECONDS = 10.0
"""A step of priority counts as so much earlier an arrival: it wins for a time, never for ever."""
MOST_PRIORITY = 6


def patience(priority: int = 0, ttft_target: float | None = None) -> float:
    """Seconds that a request may wait beside others: who came earlier, and may wait no longer, goes first.

    Between -61 and 89, so that nobody is overtaken by what arrives 150 s after it: that is the ageing. Equal words mean
    first come, first served. Without a word 0, which stands for `USUAL_TARGET`.
    """
    target = USUAL_TARGET if ttft_target is None else min(LONGEST_TARGET, ttft_target)
    return target - USUAL_TARGET + PRIORITY_SECONDS * max(-MOST_PRIORITY, min(MOST_PRIORITY, priority))


class WaitingQueue:
    def __init__(self, table: RequestTable, max_num_seqs: int) -> None:
        self._table = table
        self._max_num_seqs = max_num_seqs

    @property
    def _kv(self) -> KVCacheManager:
        return self._table.kv

    def in_turn(self, prompts: Iterable[Request], now: float) -> Iterator[Request]:
        """`prompts` that are admitted already and those that wait, in the order of their turns. One that waits is
        admitted when its turn comes, as long as somebody asks. What can never run is answered with an error."""
        full = False
        waiting = list(self._table.waiting)
        for request in heapq.merge(sorted(prompts, key=_turn), waiting, key=_turn):
            if request.state is RequestState.PREFILLING:
                yield request
                continue
            if full or self._table.num_running >= self._max_num_seqs or not self._may_begin(request):
                continue
            if self._admit(request, now):
                yield request
            else:
                full = True  # nobody passes one whose blocks are not there

    def _may_begin(self, request: Request) -> bool:
        if self._kv.blocks_for(len(request.token_ids)) > self._kv.pool.num_blocks:
            self._table.fail(request, too_large(self._kv, len(request.token_ids)))
            return False
        if not self._kv.prefix_caching:
            return True
        extend_digests(request.digests, request.token_ids, self._kv.block_size, request.cache_salt)
        return request.scores_prompt or not self._is_being_computed(request)

    def _admit(self, request: Request, now: float) -> bool:
        # Each running request is at most one block away from asking for its next one: leave it that block.
        digests = [] if request.scores_prompt else request.digests
        blocks = self._kv.admit(digests, len(request.token_ids), reserve=self._table.num_running)
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


def _turn(request: Request) -> tuple[float, int]:
    return request.turn


def too_large(kv: KVCacheManager, num_tokens: int) -> str:
    capacity = kv.pool.num_blocks * kv.block_size
    return f"{num_tokens} tokens do not fit the KV cache of {capacity}: raise --kv-cache-memory"
