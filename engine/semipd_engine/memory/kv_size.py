"""How many KV blocks there will be. Pure, but for reading what the machine grants.

Without --kv-cache-memory the pool takes a share of the memory that is left after the weights are loaded, and no more
than --max-num-seqs sequences of the full length could fill. The rest is for the workers, and on the CPU for the other
processes and the page cache. The pool is one size for everybody: no worker sizes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semipd_engine.cards.errors import ModelError
from semipd_engine.memory.layout import KVLayout

AUTOMATIC_SHARE = 0.4
"""CPU: activations of two workers, the other processes and the page cache share the rest."""
GPU_SHARE = 0.95
GPU_RESERVED = 4 << 30
"""Bytes of the GPU kept for its workers: four (each phase has one on the rung in force and one on the 100 % rung), each
with its context and modules (about 0.5 GiB), library workspaces and the intermediates of a step.
While two more are being prepared for a switch all six fit, because small rungs have smaller contexts."""
MIB = 1 << 20


@dataclass(frozen=True)
class MemoryGrant:
    free: int
    """Bytes that nobody has taken yet."""
    share: float = AUTOMATIC_SHARE
    """Part of it, less `reserved`, that the pool may take by itself."""
    reserved: int = 0
    """Bytes for the workers."""

    @property
    def automatic(self) -> int:
        return int(max(0, self.free - self.reserved) * self.share)

    def __str__(self) -> str:
        kept = f", {self.reserved / MIB:.0f} MiB of them for the workers" if self.reserved else ""
        return f"{self.free / MIB:.0f} MiB are free{kept}"


def num_kv_blocks(
    layout: KVLayout, max_model_len: int, max_num_seqs: int, kv_cache_memory: int, grant: MemoryGrant
) -> int:
    """Blocks of the pool; `kv_cache_memory` in bytes, 0: choose.

    Raises `ModelError` (OutOfMemory) when one sequence of `max_model_len` tokens would not fit.
    """
    if kv_cache_memory:
        return check_pool(layout, max_model_len, kv_cache_memory)
    needed = -(-max_model_len // layout.block_size)
    blocks = grant.automatic // layout.block_bytes
    if blocks < needed:
        raise ModelError(
            "OutOfMemory",
            f"a sequence of {max_model_len} tokens needs {needed * layout.block_bytes / MIB:.0f} MiB of KV cache but "
            f"{grant.share:.0%} of the memory left is {grant.automatic / MIB:.0f} MiB ({grant}): lower "
            "--max-model-len (engine.maxModelLen), or give more memory (engine.resources)",
            may_pass=True,
        )
    return min(blocks, max(needed, max_num_seqs * needed))


def check_pool(layout: KVLayout, max_model_len: int, kv_cache_memory: int) -> int:
    """Blocks of a pool of so many bytes, as asked for. Raises `ModelError` (OutOfMemory) where one sequence would not
    fit: no waiting helps then, and no weight need be read."""
    needed, blocks = -(-max_model_len // layout.block_size), kv_cache_memory // layout.block_bytes
    if blocks >= needed:
        return blocks
    shorter = f", or lower --max-model-len (engine.maxModelLen) to {blocks * layout.block_size}" if blocks else ""
    raise ModelError(
        "OutOfMemory",
        f"a sequence of {max_model_len} tokens needs {needed * layout.block_bytes} bytes of KV cache but "
        f"--kv-cache-memory (engine.kvCacheMemory) is {kv_cache_memory}: raise it to that{shorter}",
    )


def check_weights(nbytes: int, kv_cache_memory: int, free: int) -> None:
    """Before the first weight is read: what cannot fit is killed by the kernel again and again, without a word.

    `free`: see `claimable_memory`. Raises `ModelError` (OutOfMemory).
    """
    if nbytes + kv_cache_memory <= free:
        return
    pool = (
        f" and --kv-cache-memory (engine.kvCacheMemory) is {kv_cache_memory / MIB:.0f} MiB" if kv_cache_memory else ""
    )
    raise ModelError(
        "OutOfMemory",
        f"the weights need {nbytes / MIB:.0f} MiB{pool}, but {free / MIB:.0f} MiB of memory can be had: "
        f"raise the memory limit (engine.resources) by at least {-(-(nbytes + kv_cache_memory - free) // MIB)} MiB",
        may_pass=True,
    )


def claimable_memory(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that this container could ever take: unlike `available_memory` what only caches files is not in the way,
    and swap counts. Where the kernel does not tell the two apart (cgroup v1), the whole limit."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = sum(int(fields.get(name, "0 kB").split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024
    for limit_name, stat_name in (("memory.max", "memory.stat"), ("memory/memory.limit_in_bytes", "")):
        try:
            limit = (cgroup / limit_name).read_text().strip()
            lines = (cgroup / stat_name).read_text().splitlines() if stat_name else []
        except OSError:
            continue
        held = sum(int(line.split()[1]) for line in lines if line.startswith(("anon ", "shmem ")))
        if limit != "max":
            free = min(free, max(0, int(limit) - held))
    return free


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
