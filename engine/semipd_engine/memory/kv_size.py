"""How many KV blocks there will be. Pure, but for reading what the machine grants.

Without --kv-cache-memory the pool takes `AUTOMATIC_SHARE` of the memory that is left after the weights are loaded, and
no more than --max-num-seqs sequences of the full length could fill. The rest is for the activations of two workers, the
other processes and the page cache. The pool is one size for everybody: no worker sizes anything.
"""

from __future__ import annotations

from pathlib import Path

from semipd_engine.memory.layout import KVLayout
from semipd_engine.model.errors import ModelError

AUTOMATIC_SHARE = 0.4
MIB = 1 << 20


def num_kv_blocks(layout: KVLayout, max_model_len: int, max_num_seqs: int, kv_cache_memory: int, available: int) -> int:
    """Blocks of the pool; `kv_cache_memory` and `available` in bytes, 0 for the former: choose.

    Raises `ModelError` (OutOfMemory) when one sequence of `max_model_len` tokens would not fit.
    """
    needed = -(-max_model_len // layout.block_size)
    budget = kv_cache_memory or int(available * AUTOMATIC_SHARE)
    blocks = budget // layout.block_bytes
    if blocks < needed:
        source = "--kv-cache-memory" if kv_cache_memory else f"{AUTOMATIC_SHARE:.0%} of the memory left"
        raise ModelError(
            "OutOfMemory",
            f"a sequence of {max_model_len} tokens needs {needed * layout.block_bytes / MIB:.0f} MiB of KV cache but "
            f"{source} is {budget / MIB:.0f} MiB ({available / MIB:.0f} MiB are free): "
            "lower --max-model-len, or give more memory",
        )
    return blocks if kv_cache_memory else min(blocks, max(needed, max_num_seqs * needed))


def available_memory(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that this container can still take: the tightest of the machine's free memory and its cgroup's limit."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (cgroup / limit_name).read_text().strip()
            usage = int((cgroup / usage_name).read_text())
        except (OSError, ValueError):
            continue
        if limit != "max":
            free = min(free, max(0, int(limit) - usage))
    return free
