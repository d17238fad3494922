"""How large the KV pool becomes, and what is said when it cannot be large enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from semipd_engine.cards.errors import ModelError
from semipd_engine.memory.kv_size import (
    AUTOMATIC_SHARE,
    GPU_RESERVED,
    GPU_SHARE,
    MIB,
    MemoryGrant,
    available_memory,
    check_pool,
    check_weights,
    claimable_memory,
    num_kv_blocks,
)
from semipd_engine.memory.layout import KVComponent, KVLayout

pytestmark = pytest.mark.unit

LAYOUT = KVLayout(
    num_layers=2, components=(KVComponent("key", 64), KVComponent("value", 64)), block_size=16, itemsize=2
)


def test_what_was_asked_for_is_taken() -> None:
    assert num_kv_blocks(LAYOUT, 64, 1, kv_cache_memory=10 * LAYOUT.block_bytes + 1, grant=MemoryGrant(0)) == 10


def test_by_itself_it_takes_a_share_up_to_what_can_be_filled() -> None:
    available = MemoryGrant(1000 * LAYOUT.block_bytes)
    assert num_kv_blocks(LAYOUT, 160, 64, 0, available) == int(1000 * AUTOMATIC_SHARE)
    assert num_kv_blocks(LAYOUT, 160, 3, 0, available) == 30  # three sequences of ten blocks


@pytest.mark.parametrize("asked", [0, 3 * LAYOUT.block_bytes])
def test_too_little_for_one_sequence_is_an_error_with_numbers(asked: int) -> None:
    with pytest.raises(ModelError, match="--max-model-len") as error:
        num_kv_blocks(LAYOUT, 64, 8, asked, MemoryGrant(4 * LAYOUT.block_bytes))
    assert error.value.reason == "OutOfMemory"
    assert error.value.may_pass == (not asked), "what was asked for stays too little"


@pytest.mark.parametrize(("blocks", "shorter"), [(3, ", or lower --max-model-len (engine.maxModelLen) to 48"), (0, "")])
def test_a_pool_that_was_asked_for_and_holds_no_sequence_is_told_which_would(blocks: int, shorter: str) -> None:
    size = blocks * LAYOUT.block_bytes + 5
    with pytest.raises(ModelError) as refused:
        check_pool(LAYOUT, 60, size)
    assert str(refused.value) == (
        "a sequence of 60 tokens needs 32768 bytes of KV cache but --kv-cache-memory (engine.kvCacheMemory) is "
        f"{size}: raise it to that{shorter}"
    )
    assert check_pool(LAYOUT, 60, 32768) == 4
    assert not shorter or check_pool(LAYOUT, 48, size) == 3


def test_a_gpu_keeps_room_for_its_workers() -> None:
    free = GPU_RESERVED + 1000 * LAYOUT.block_bytes
    assert num_kv_blocks(LAYOUT, 160, 64, 0, MemoryGrant(free, 1.0, GPU_RESERVED)) == 64 * 10
    assert num_kv_blocks(LAYOUT, 160, 640, 0, MemoryGrant(free, 1.0, GPU_RESERVED)) == 1000
    small = MemoryGrant(GPU_RESERVED - MIB, GPU_SHARE, GPU_RESERVED)
    with pytest.raises(ModelError, match=r"is 0 MiB \(4095 MiB are free, 4096 MiB of them for the workers\)"):
        num_kv_blocks(LAYOUT, 160, 64, 0, small)
    assert num_kv_blocks(LAYOUT, 160, 1, 40 * LAYOUT.block_bytes, small) == 40  # asked for: the user knows better


@pytest.mark.parametrize(
    ("limit_name", "usage_name"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_the_cgroup_counts_where_it_is_tighter(tmp_path: Path, limit_name: str, usage_name: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable:    2000 kB\n")
    assert available_memory(tmp_path, meminfo) == 2000 * 1024
    (tmp_path / "memory").mkdir()
    (tmp_path / usage_name).write_text("500\n")
    (tmp_path / limit_name).write_text("max\n" if limit_name == "memory.max" else str(1 << 62))
    assert available_memory(tmp_path, meminfo) == 2000 * 1024
    (tmp_path / limit_name).write_text("1500\n")
    assert available_memory(tmp_path, meminfo) == 1000


def test_what_only_caches_files_is_not_in_the_way_of_the_weights(tmp_path: Path) -> None:
    """A container that has read the model before is full of its files."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable:    2000 kB\nSwapFree: 100 kB\n")
    assert claimable_memory(tmp_path, meminfo) == 2100 * 1024
    (tmp_path / "memory.max").write_text("1500\n")
    (tmp_path / "memory.current").write_text("1500\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 1190\nshmem 10\nanon_thp 5\n")
    assert claimable_memory(tmp_path, meminfo) == 1190
    (tmp_path / "memory.max").write_text("max\n")
    assert claimable_memory(tmp_path, meminfo) == 2100 * 1024
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1400\n")
    assert claimable_memory(tmp_path, meminfo) == 1400


@pytest.mark.parametrize(
    ("kv", "words"), [(0, ""), (30 * MIB, " and --kv-cache-memory (engine.kvCacheMemory) is 30 MiB")]
)
def test_weights_that_cannot_fit_are_refused_before_they_are_read(kv: int, words: str) -> None:
    check_weights(70 * MIB, kv, 70 * MIB + kv)
    with pytest.raises(ModelError) as refused:
        check_weights(70 * MIB, kv, 60 * MIB)
    assert refused.value.reason == "OutOfMemory"
    assert str(refused.value) == (
        f"the weights need 70 MiB{words}, but 60 MiB of memory can be had: raise the memory limit (engine.resources) "
        f"by at least {10 + kv // MIB} MiB"
    )
