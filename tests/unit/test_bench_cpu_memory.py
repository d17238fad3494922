"""`make bench-cpu`'s look for a second copy of the weights, at processes that hold one and at some that do not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.cpu import memory

pytestmark = pytest.mark.unit


MIB = 1 << 20
WEIGHTS = 48 * MIB
HOLDER = textwrap.dedent("""
    import mmap, os, sys

    size, kind = int(sys.argv[1]), sys.argv[2]

    def mapped():
        area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area.write(b"x" * size)
        return area

    weights = mapped()
    another = mapped() if kind == "before the fork" else None
    ready, told = os.pipe()
    stay, go = os.pipe()
    if child := os.fork():
        os.read(ready, 1)
        print(child, flush=True)
        sys.stdin.read()
        os.write(go, b"x")
        os.wait()
    else:
        if kind == "in the worker":
            another = mapped()
        if kind == "written to":
            weights.seek(0)
            weights.write(b"y" * size)
        os.write(told, b"x")
        os.read(stay, 1)
        os._exit(0)
""")


@contextmanager
def holder(kind: str) -> Iterator[list[list[memory.Area]]]:
    command = [sys.executable, "-c", HOLDER, str(WEIGHTS), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield [memory.read_smaps(process.pid), memory.read_smaps(child)]
        process.communicate("")


def test_weights_that_are_shared_by_a_fork_are_one_copy() -> None:
    with holder("once") as processes:
        held = memory.held(processes, WEIGHTS)
    assert held.beside < WEIGHTS / 2 and WEIGHTS < held.pss < 2 * WEIGHTS and held.kv_pss == 0


@pytest.mark.parametrize("kind", ["before the fork", "in the worker", "written to"])
def test_a_second_copy_of_the_weights_is_seen(kind: str) -> None:
    """Made before the fork, it is shared as the first one is, and private to nobody."""
    with holder(kind) as processes:
        assert memory.held(processes, WEIGHTS).beside > WEIGHTS


def test_the_kv_pool_is_told_from_the_rest() -> None:
    lines = [
        "7f0000000000-7f0000100000 rw-s 00000000 00:01 12                         /memfd:semipd-kv (deleted)",
        *("Size:               1024 kB", "Pss:                 512 kB", "VmFlags: rd wr sh"),
        "7f0000100000-7f0000200000 rw-p 00000000 00:00 0 ",
        *("Size:               1024 kB", "Pss:                 100 kB", "Anonymous:          100 kB"),
    ]
    held = memory.held([memory.parse(lines)], 512 * MIB)
    assert (held.pss, held.kv_pss, held.beside) == (612 * 1024, 512 * 1024, 100 * 1024)
