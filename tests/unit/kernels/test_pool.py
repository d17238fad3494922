"""How a list of calls uses the pool of threads: what it is asked, and how often. The pool here is one that counts."""

from __future__ import annotations

import ctypes
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.unit.kernels.cases import Paged

from semipd_engine.kernels import cpu
from semipd_engine.kernels.cpu import library
from semipd_engine.kernels.cpu.library import Library

pytestmark = [pytest.mark.unit, pytest.mark.skipif(not cpu.runnable(), reason="no level runs on this CPU")]
BODY = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
PARALLEL_FOR = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)
THREAD_COUNT = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_uint32))


class Pool:
    """A thread for each body, or one for all of them. `size` is the caller's; other threads know another one."""

    def __init__(self, size: int, able: bool = True) -> None:
        self.size, self.able = size, able
        self.woken: list[int] = []
        self.asked_by_members = 0
        self._caller = threading.get_ident()
        self._callbacks = PARALLEL_FOR(self._run), THREAD_COUNT(self._count)

    def serve(self, tmp_path: Path) -> cpu.CpuKernels:
        """Kernels that use this pool: of a copy of the library, which shares nothing with the one in use."""
        level = cpu.runnable()[0]
        path = shutil.copy(library.FOLDER / f"libsemipd_{level}.so", tmp_path / "libpool.so")
        calls = ctypes.CDLL(str(path))
        for name, arguments in library.SIGNATURES.items():
            getattr(calls, f"semipd_{name}").argtypes = [ctypes.c_int32, *arguments]
        calls.semipd_run.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        assert calls.semipd_start(*self._callbacks) == 0
        return cpu.CpuKernels(Library(level, calls))

    def _run(self, begin: int, end: int, _grain: int, body: int, context: int) -> int:
        self.woken.append(end - begin)
        call: Callable[[int, int, int], None] = BODY(body)
        if not self.able:
            call(begin, end, context)
            return 0
        members = [threading.Thread(target=call, args=(i, i + 1, context)) for i in range(begin, end)]
        for member in members:
            member.start()
        for member in members:
            member.join()
        return 0

    def _count(self, out: ctypes._Pointer[ctypes.c_uint32]) -> int:
        caller = threading.get_ident() == self._caller
        self.asked_by_members += not caller
        out[0] = self.size if caller else 64
        return 0


def attend(kernels: cpu.CpuKernels, case: Paged, out: torch.Tensor) -> None:
    kernels.paged_attention(case.q, case.keys, case.values, case.tables, case.lengths, case.starts, case.scale, out)


def attend_latent(kernels: cpu.CpuKernels, case: Paged, out: torch.Tensor) -> None:
    kernels.latent_attention(case.q, case.keys, case.tables, case.lengths, case.starts, case.scale, out)


Attend = Callable[[cpu.CpuKernels, Paged, torch.Tensor], None]


def replayed(kernels: cpu.CpuKernels, case: Paged, kernel: Attend) -> torch.Tensor:
    out = torch.zeros_like(case.q)
    with kernels.recording() as calls:
        kernel(kernels, case, out)
    kernels.replay(b"".join(calls))
    return out


def direct(case: Paged, kernel: Attend) -> torch.Tensor:
    out = torch.zeros_like(case.q)
    kernel(cpu.best(), case, out)
    return out


both = pytest.mark.parametrize("kernel", [attend, attend_latent])


@both
def test_members_of_a_team_share_by_the_teams_size(tmp_path: Path, kernel: Attend) -> None:
    """Were each to ask the pool, two could cut the same work differently, and leave some of it undone."""
    pool = Pool(size=2)
    case = Paged.make([70], [1], 8, 1, 64, 16, 1, torch.bfloat16)
    kernels = pool.serve(tmp_path)
    assert torch.equal(replayed(kernels, case, kernel), direct(case, kernel))
    assert pool.asked_by_members == 0


@both
def test_a_pool_is_asked_once_for_each_size_whether_it_can_make_a_team(tmp_path: Path, kernel: Attend) -> None:
    """Its limit goes to and fro with the split; each question wakes every thread."""
    pool = Pool(size=2, able=False)
    case = Paged.make([70], [1], 8, 1, 64, 16, 1, torch.bfloat16)
    kernels = pool.serve(tmp_path)
    empty = b""
    for size in (2, 3, 2, 3, 2, 3):
        pool.size = size
        kernels.replay(empty)
    assert pool.woken == [2, 3]
    assert torch.equal(replayed(kernels, case, kernel), direct(case, kernel)), "without a team all the same"


def mapped_megabytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmData:")[1].split()[0]) >> 10


@both
def test_what_a_pools_threads_kept_ends_with_them(tmp_path: Path, kernel: Attend) -> None:
    """A pool ends threads each time that it is to have fewer: with each prompt, where CPUs are more than two."""
    kernels = Pool(size=2).serve(tmp_path)
    case = Paged.make([70], [1], 8, 1, 64, 16, 1, torch.bfloat16)
    out = torch.zeros_like(case.q)
    with kernels.recording() as calls:
        kernel(kernels, case, out)
    kernels.replay(b"".join(calls))
    before = mapped_megabytes()
    for _ in range(400):  # two threads each
        kernels.replay(b"".join(calls))
    assert mapped_megabytes() - before < 64
