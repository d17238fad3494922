"""Thin shell over the kernel's namespace calls, which Python 3.11 lacks: unshare, enter, mount, run inside."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_KINDS = {"mnt": CLONE_NEWNS, "net": CLONE_NEWNET, "pid": CLONE_NEWPID}

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
_PR_SET_PDEATHSIG = 1


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare() -> None:
    """New mount and network namespaces for this process, a new PID namespace for its next child."""
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID), "unshare")


def mount(source: str, target: Path, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2); the target must exist."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, str(target), fstype, data)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def enter(pid: int) -> None:
    """Joins the namespaces of `pid`; the PID namespace counts from the next fork on."""
    descriptors = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in _KINDS}
    for kind, descriptor in descriptors.items():  # opened first: after "mnt" this /proc is another's
        _check(_libc.setns(descriptor, _KINDS[kind]), f"enter {kind} namespace")
        os.close(descriptor)


@contextmanager
def network_of(pid: int) -> Iterator[None]:
    """This thread's new sockets and children are in the network of `pid`; files and process ids stay the caller's."""
    with Path("/proc/thread-self/ns/net").open() as own, Path(f"/proc/{pid}/ns/net").open() as other:
        _check(_libc.setns(other.fileno(), CLONE_NEWNET), "enter net namespace")
        try:
            yield
        finally:
            _check(_libc.setns(own.fileno(), CLONE_NEWNET), "leave net namespace")


def die_with_parent(kill: signal.Signals = signal.SIGKILL) -> None:
    """Called in a child: the kernel sends it `kill` when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(int(kill)), 0, 0, 0), "prctl")


def run_inside(pid: int, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Runs a command in the namespaces of `pid` as if it had been exec'd: same working directory, signals, exit code.

    Exits 127 when there is no such command and 128+N when it died of signal N.
    """
    cwd = Path.cwd()
    enter(pid)
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            try:
                os.chdir(cwd)
            except OSError:
                os.chdir("/")
            os.execvpe(argv[0], list(argv), dict(env))
        except OSError as error:
            print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)

    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
        signal.signal(number, forward)
    for number in (signal.SIGINT, signal.SIGQUIT):
        # A terminal sends these to the whole foreground group, the child included; kill sends them only to us.
        signal.signal(number, forward if not sys.stdin.isatty() else signal.SIG_IGN)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout.flush()
    os._exit(status if status >= 0 else 128 - status)
