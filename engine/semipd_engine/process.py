"""What processes of the engine do at start and end: die with the parent or before it, listen, refuse."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Collection
from pathlib import Path

REFUSED = 2
"""Exit status of the api, and then of the launcher, where another start cannot help."""
TRY_LATER = 75
"""Exit status of the resident, or of a launcher whose run directory is another's, where another start may help by and
by (EX_TEMPFAIL)."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
OOM_SCORE_RAISE = 300
"""Of a worker over the resident: nearly a third of all memory in the kernel's reckoning."""
PROMPTS_NICENESS = 5
"""Of who computes prompts on CPUs: a third of the weight of who decodes, schedules and answers (sched(7))."""


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL for this process when its parent dies; exits at once if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """From now on this process is the parent of whoever below it loses theirs."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def bury_strangers(known: Collection[int]) -> None:
    """Take the end of each child that is none of `known`: whoever adopts has to. A known one that has ended hides the
    others until it is taken."""
    with contextlib.suppress(ChildProcessError):  # there are no children
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in known:
            os.waitpid(ended.si_pid, 0)


def die_first() -> None:
    """Let the kernel take this process before its parent when memory is short: nothing is lost with it."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # whoever may not raise it keeps what it has inherited
        path.write_text(str(min(1000, int(path.read_text()) + OOM_SCORE_RAISE)))


def give_way() -> None:
    """Let the engine's other processes go first: each token of a stream waits for them, a prompt for seconds anyway.

    Of the calling thread, and of those that it starts from now on (setpriority(2), "C library/kernel differences").
    Within a container it weighs nothing against other containers, which share by their cgroups."""
    os.nice(PROMPTS_NICENESS)


def listen(path: Path) -> socket.socket:
    """A listening Unix stream socket that only this user may connect to. A stale file of a dead process is replaced."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(mask)
    sock.listen(16)
    return sock


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. ``::`` takes both families, and IPv4 alone where the kernel has no
    IPv6. Raises OSError."""
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=host == "::")


def no_port(host: str, port: int) -> str:
    """Why nobody could listen there, and the remedy; empty where one could."""
    try:
        bind(host, port).close()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error
        return (
            f"--host {host} --port {port}: {why}; name another port (0 takes a free one), or an address of this machine"
        )
    return ""
