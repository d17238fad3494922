"""The block pool: states of a block, quarantine by both clocks, publication, eviction, exact accounting."""

from __future__ import annotations

import random

import pytest

from semipd_engine.contract import Phase
from semipd_engine.core.block_pool import BlockAccountingError, BlockPool, LastSteps, OutOfBlocks
from semipd_engine.core.kv_cache_manager import KVCacheManager, extend_digests

pytestmark = pytest.mark.unit


def test_concurrent_takes_always_add_up() -> None:
    """The paper's allocation race: 50 of 100 used, 21 for prefill and 10 for decode end at 81, in either order."""
    for first, second in ((21, 10), (10, 21)):
        pool = BlockPool(100)
        pool.allocate(50)
        assert not set(pool.allocate(first)) & set(pool.allocate(second))
        assert pool.counts().used == 81
        with pytest.raises(OutOfBlocks):
            pool.allocate(20)
        assert pool.counts().used == 81


@pytest.mark.parametrize("order", [(Phase.PREFILL, Phase.DECODE), (Phase.DECODE, Phase.PREFILL)])
def test_a_block_waits_for_both_clocks(order: tuple[Phase, Phase]) -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    for phase in Phase:
        pool.clocks[phase].plan(3)
    pool.release([block], LastSteps(prefill=2, decode=3))
    assert pool.counts().quarantined == 1 and pool.available == 0
    pool.complete(order[0], 3)
    assert pool.counts().quarantined == 1
    pool.complete(order[1], 1)
    assert pool.counts().quarantined == 1
    pool.complete(order[1], 3)
    assert pool.counts().free == 1


def test_an_idle_phase_owes_nothing() -> None:
    pool = BlockPool(1)
    pool.release(pool.allocate(1), LastSteps())
    assert pool.counts().free == 1


def test_a_shared_block_remembers_every_holder() -> None:
    """The holder with the step in flight leaves first; the block still waits for that step."""
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.publish(block, b"content")
    pool.share(block)
    pool.clocks[Phase.PREFILL].plan(5)
    pool.release([block], LastSteps(prefill=5))
    pool.release([block], LastSteps(prefill=1))
    assert pool.counts().quarantined == 1
    found = pool.find(b"content")
    assert found == block
    pool.share(block)  # reading needs no quarantine
    assert pool.counts().used == 1
    pool.release([block], LastSteps())
    assert pool.counts().quarantined == 1
    pool.complete(Phase.PREFILL, 5)
    assert pool.counts().cached == 1 and pool.available == 1


def test_the_least_recently_used_content_is_evicted() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"1")
    pool.publish(second, b"2")
    pool.release([first, second], LastSteps())
    pool.share(first)
    pool.release([first], LastSteps())
    assert pool.allocate(1) == [second]
    assert pool.find(b"2") is None and pool.find(b"1") == first


def test_misuse_is_an_error() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.release([block], LastSteps())
    with pytest.raises(BlockAccountingError, match="not used"):
        pool.release([block], LastSteps())
    with pytest.raises(BlockAccountingError, match="nobody"):
        pool.publish(block, b"x")
    with pytest.raises(BlockAccountingError, match="planned"):
        pool.complete(Phase.DECODE, 1)
    with pytest.raises(ValueError, match="num_blocks"):
        BlockPool(0)


def test_digests_chain_over_everything_before() -> None:
    digests: list[bytes] = []
    extend_digests(digests, [1, 2, 3, 4, 5], 2)
    assert len(digests) == 2
    other: list[bytes] = []
    extend_digests(other, [9, 2, 3, 4], 2)
    assert digests[1] != other[1]  # equal blocks, other beginnings
    extend_digests(digests, [1, 2, 3, 4, 5, 6], 2)
    assert len(digests) == 3


@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17])
def test_a_hit_never_covers_the_last_token(length: int) -> None:
    kv = KVCacheManager(BlockPool(20), 8)
    tokens = list(range(length))
    digests: list[bytes] = []
    extend_digests(digests, tokens, 8)
    first = kv.admit(digests, length, reserve=0)
    assert first is not None
    kv.publish(first, digests, tokens, length)
    kv.release(first, LastSteps())
    again = kv.admit(digests, length, reserve=0)
    assert again is not None
    assert again.num_cached_tokens == (length - 1) // 8 * 8 < length


def test_two_clients_of_one_owner_never_share_a_block() -> None:
    """10^5 random allocations and releases by two clients that come and go: no block has two owners."""
    rng = random.Random(0)
    pool = BlockPool(64)
    held: dict[Phase, list[int]] = {p: [] for p in Phase}
    for _ in range(100_000):
        phase = rng.choice(list(Phase))
        dice = rng.random()
        clock = pool.clocks[phase]
        if dice < 0.45 and pool.available:
            held[phase] += pool.allocate(rng.randrange(1, min(4, pool.available) + 1))
        elif dice < 0.8 and held[phase]:
            block = held[phase].pop(rng.randrange(len(held[phase])))
            pool.release([block], LastSteps(**{phase.value: clock.planned}))
        elif dice < 0.9:
            clock.plan(rng.randrange(1, 9))
        elif dice < 0.99:
            pool.complete(phase, rng.randrange(clock.completed, clock.planned + 1))
        else:  # the client is killed: its owner takes everything back
            pool.release(held[phase], LastSteps(**{phase.value: clock.planned}))
            held[phase] = []
            pool.complete(phase, clock.planned)
        pool.check()
        owned = held[Phase.PREFILL] + held[Phase.DECODE]
        assert len(set(owned)) == len(owned) == pool.counts().used
