"""What the kernel says of a process: private memory, CPU time, and the shared mappings it has."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def memory_bytes(pid: int, kind: str) -> int:
    """Pss, Private_Dirty, ...: a line of smaps_rollup."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"^{kind}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mapped_inodes(pid: int, name: str) -> set[int]:
    """Inodes of the memfds called `name` that the process has mapped shared."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    fields = [line.split(maxsplit=5) for line in lines]
    return {int(f[4]) for f in fields if len(f) == 6 and f[5].startswith(f"/memfd:{name}") and f[1][3] == "s"}


def memfd_inode(pid: int, name: str) -> int:
    """Inode of the memfd called `name` that process `pid` holds open."""
    return _memfd_link(pid, name).stat().st_ino


@contextmanager
def memfd(pid: int, name: str) -> Iterator[mmap.mmap]:
    """A writable mapping of that memfd, as an intruder would get it."""
    with _memfd_link(pid, name).open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        yield view


def _memfd_link(pid: int, name: str) -> Path:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if str(link.readlink()).startswith(f"/memfd:{name}"):
            return link
    raise AssertionError(f"process {pid} holds no memfd called {name}")
