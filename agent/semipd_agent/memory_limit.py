"""The container's memory limit and the kernel's kills at it, from the cgroup. Knows no process by name.

A kill of one process of several is nobody's exit status that Kubernetes would show: only the counter tells of it.
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
"""

from __future__ import annotations

from pathlib import Path

_VERSIONS = (
    ("memory.events", "memory.max"),
    ("memory/memory.oom_control", "memory/memory.limit_in_bytes"),
)
"""(file with a line ``oom_kill N``, file with the limit in bytes) of cgroup v2 and v1."""


class MemoryLimit:
    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        self._events, self._limit = next(
            ((root / events, root / limit) for events, limit in _VERSIONS if (root / events).exists()),
            (root / _VERSIONS[0][0], root / _VERSIONS[0][1]),
        )
        self._seen = self._kills()

    def forgive(self) -> None:
        """What was killed so far was overcome."""
        self._seen = self._kills()

    def problem(self) -> str:
        """Kills since `forgive`, in words; empty without any, and where there is no such file."""
        count = self._kills() - self._seen
        if count <= 0:
            return ""
        times = "a process was" if count == 1 else f"processes were {count} times"
        return f"{times} killed at the container's memory limit{self._words()}"

    def _kills(self) -> int:
        try:
            lines = self._events.read_text().splitlines()
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        except (OSError, ValueError, IndexError):
            return 0

    def _words(self) -> str:
        try:
            size = int(self._limit.read_text())
        except (OSError, ValueError):
            return ""
        return f" of {size / 2**30:.2g} GiB" if size < 2**50 else ""
