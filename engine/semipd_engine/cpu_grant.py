"""How many CPUs, and which ones, the container may use: affinity mask and cgroup quota, v1 and v2. Limits nothing.

The kernel already intersects the affinity mask with the cgroup's cpuset, so the mask is both. A CFS quota says how
much, not which: a fractional quota is rounded to the nearest whole CPU, at least one (1500m gives two CPUs: both run
and the kernel throttles them for a quarter of the time; 1250m gives one, whose quarter is left unused, because a
throttled pause is worse for the gap between tokens than a fifth of the throughput).

Where the quota is smaller than the mask, the CPUs are a run of the mask that starts at a place given by a seed, the
pod's uid or name: pods on one node then do not all pin themselves to the lowest CPUs.
"""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Grant:
    """CPUs that the container may really use."""

    cpus: tuple[int, ...] = ()
    """CPU numbers; empty: not limited by us."""
    quota: float | None = None
    """CFS quota in CPUs; None: no quota."""

    @property
    def threads(self) -> int:
        return max(1, len(self.cpus))

    @property
    def throttled(self) -> float | None:
        """The quota where `cpus` can use it up, so that the kernel stops them for a part of each period; else None."""
        return self.quota if self.quota is not None and self.quota < len(self.cpus) else None


def granted(
    seed: str = "", *, affinity: frozenset[int] | None = None, root: Path = Path("/"), cgroup: str | None = None
) -> Grant:
    """CPUs granted to this process. `seed` (the pod's uid or name) places the run; what follows is for tests."""
    mask = sorted(os.sched_getaffinity(0) if affinity is None else affinity)
    quota = cpu_quota(root, cgroup)
    count = len(mask) if quota is None else min(len(mask), max(1, math.floor(quota + 0.5)))
    start = zlib.crc32(seed.encode()) % len(mask) if mask and count < len(mask) else 0
    return Grant(cpus=tuple(sorted((mask + mask)[start : start + count])), quota=quota)


def cpu_quota(root: Path = Path("/"), cgroup: str | None = None) -> float | None:
    """Smallest CFS quota, in CPUs, of this process's cgroup and those above it; None: no quota.

    `cgroup` is the text of ``/proc/self/cgroup``. In a cgroup namespace its paths are relative to the mounted root; in
    one that is not (v1 as containerd mounts it) the path does not exist under the mount, and the root is our own.
    """
    text = (root / "proc/self/cgroup").read_text() if cgroup is None else cgroup
    quotas: list[float] = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += [q for d in _upwards(root / "sys/fs/cgroup", path) if (q := _quota_v2(d)) is not None]
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                base = root / "sys/fs/cgroup" / mount
                quotas += [q for d in _upwards(base, path) if (q := _quota_v1(d)) is not None]
    return min(quotas, default=None)


def _upwards(base: Path, path: str) -> list[Path]:
    parts = [p for p in path.split("/") if p and p != ".."]
    return [base.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _quota_v2(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(directory: Path) -> float | None:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None
