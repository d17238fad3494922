"""Pages of the KV pool are taken before a step needs them, a bounded part of the pool ahead of what has been used."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable

import pytest
import torch

from semipd_engine.memory import kv_pool
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.memory.layout import KVComponent, KVLayout
from semipd_engine.memory.pages_ahead import PagesAhead

pytestmark = pytest.mark.unit
LAYOUT = KVLayout(num_layers=3, components=(KVComponent("k", 128), KVComponent("v", 64)), block_size=16, itemsize=2)
BLOCKS = 400


@pytest.fixture
def pool() -> KVPool:
    return KVPool.create(LAYOUT, BLOCKS, torch.bfloat16)


def taken(pool: KVPool) -> int:
    """Bytes that the pool has of the machine's memory."""
    return 512 * os.fstat(pool.region.fd).st_blocks


def faults(work: Callable[[], object]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def write(pool: KVPool, first: int, last: int) -> None:
    for layer in range(LAYOUT.num_layers):
        for component in pool.layer(layer):
            component[first:last] = 1


def test_blocks_whose_pages_were_taken_fault_no_more(pool: KVPool) -> None:
    """Without it each page is a fault, unless the host gives shared memory huge pages."""
    write(pool, 398, 400)  # whatever torch takes for itself at its first write
    pages = 100 * LAYOUT.block_bytes // mmap.PAGESIZE
    assert pool.take_pages(0, 100) and taken(pool) >= pages * mmap.PAGESIZE
    assert faults(lambda: write(pool, 0, 100)) < pages / 4


def test_what_a_page_holds_stays(pool: KVPool) -> None:
    write(pool, 0, 3)
    assert pool.take_pages(1, 20)
    assert all(bool((component[:3] == 1).all()) for component in pool.layer(2))
    assert all(bool((component[3:20] == 0).all()) for component in pool.layer(2))


def test_the_pool_stays_lazy_but_for_a_bounded_part_ahead_of_what_was_used(
    pool: KVPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[int, int]]()
    take = pool.take_pages

    def ask(first: int, last: int) -> bool:
        asked.append((first, last))
        return take(first, last)

    monkeypatch.setattr(pool, "take_pages", ask)
    pages = PagesAhead(pool, ahead_bytes=10 * LAYOUT.block_bytes, piece_bytes=4 * LAYOUT.block_bytes)
    assert [pages.take_some() for _ in range(4)] == [True, True, False, False]
    assert asked == [(0, 4), (4, 8), (8, 10)]
    assert 10 * LAYOUT.block_bytes <= taken(pool)
    pages.used(3)
    assert not pages.take_some() and asked[3:] == [(10, 14)] and taken(pool) >= 14 * LAYOUT.block_bytes
    pages.used(BLOCKS - 1)
    while pages.take_some():
        pass
    assert asked[-1][1] == BLOCKS and taken(pool) >= BLOCKS * LAYOUT.block_bytes


def test_where_pages_cannot_be_taken_nobody_tries_again(pool: KVPool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()

    def refuse(data: torch.Tensor, begin: int, end: int) -> bool:
        calls.append(begin)
        return False

    monkeypatch.setattr(kv_pool, "take_pages", refuse)
    pages = PagesAhead(pool)
    assert not pages.take_some() and len(calls) == 1
    pages.used(BLOCKS - 1)
    assert not pages.take_some() and len(calls) == 1
