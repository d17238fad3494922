"""A resident and its zygote, without a model: ``python -m tests.unit.zygote_bench`` is the one, with PARENT and ORDERS
the other. What each worker sees is printed as a line of JSON by the resident.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import time

from semipd_engine.ipc.frames import BlockingChannel
from semipd_engine.process import die_with_parent
from semipd_engine.resident import zygote as nursery
from semipd_engine.worker import zygote
from semipd_engine.worker.start_messages import ForkWorker


def worker(parent: int, channel: int, start: int) -> int:
    """Tells what it sees, and ends with what it is told."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    word = {name: (getenv(name.encode()) or b"").decode() for name in ("RUNG", "OF_THE_RESIDENT")}
    seen = {"parent": os.getppid() == parent, **word, "fds": len(os.listdir("/proc/self/fd"))}  # noqa: PTH208
    socket.socket(fileno=channel).send(json.dumps(seen).encode())
    return int(socket.socket(fileno=start).recv(8))


def be_zygote(parent: int, orders: int) -> None:
    die_with_parent(parent)
    zygote.serve(parent, BlockingChannel(socket.socket(fileno=orders), ForkWorker), worker)


def forked(mother: nursery.Zygote, rung: str) -> tuple[int | None, socket.socket, socket.socket]:
    (ours, channel), (start, theirs) = socket.socketpair(), socket.socketpair()
    with channel, theirs:
        environment = {name: value for name, value in os.environ.items() if name != "OF_THE_RESIDENT"}
        return mother.fork(environment | {"RUNG": rung}, channel, theirs), ours, start


def patient(mother: nursery.Zygote, rung: str) -> tuple[int, socket.socket, socket.socket]:
    while True:
        pid, ours, start = forked(mother, rung)
        if pid is not None:
            return pid, ours, start
        time.sleep(0.02)


def be_resident() -> None:
    nursery.MODULE = "tests.unit.zygote_bench"
    mother = nursery.Zygote()
    print(json.dumps({"first": forked(mother, "0")[0]}))
    for rung in ("60", "40"):
        pid, ours, start = patient(mother, rung)
        seen = json.loads(ours.recv(999))
        start.send(b"7")
        print(json.dumps(seen | {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}))
    _, ours, start = patient(mother, "20")
    ours.recv(999)  # it runs, and holds no end of the zygote's socket any more
    start.close()
    os.kill(mother._pid, 9)
    os.waitid(os.P_PID, mother._pid, os.WEXITED | os.WNOWAIT)
    print(json.dumps({"after its death": forked(mother, "20")[0]}))
    print(json.dumps({"another": bool(patient(mother, "20")[0])}))
    mother.close()


if __name__ == "__main__":
    be_zygote(*map(int, sys.argv[1:3])) if len(sys.argv) > 2 else be_resident()
