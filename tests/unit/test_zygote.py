"""Workers that are forked by a process that has its imports behind it: whose children they are, and what they see."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
import torch

from semipd_engine.resident import zygote as nursery
from semipd_engine.worker import zygote

pytestmark = pytest.mark.unit


def test_a_forked_worker_is_the_residents_child_in_its_rungs_environment() -> None:
    """The driver reads the environment by `getenv`, so that is what is asked. Until the zygote is ready, and after its
    death, a worker is to be started by exec; then there is another."""
    command = [sys.executable, "-m", "tests.unit.zygote_bench"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RUNG": "", "OF_THE_RESIDENT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, *workers, killed, another = map(json.loads, done.stdout.splitlines())
    assert first == {"first": None} and killed == {"after its death": None} and another == {"another": True}
    assert len({worker.pop("fds") for worker in workers}) == 1, "no descriptor of an earlier worker is left"
    assert workers == [{"parent": True, "RUNG": rung, "OF_THE_RESIDENT": "", "status": 7} for rung in ("60", "40")]


def test_a_zygote_that_cannot_be_started_leaves_workers_to_exec_and_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[None] = []
    monkeypatch.setattr(nursery, "adopt_orphans", lambda: tries.append(None))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    mother, (channel, start) = nursery.Zygote(), socket.socketpair()
    with channel, start:
        before = os.listdir("/proc/self/fd")  # noqa: PTH208
        assert [mother.fork({}, channel, start) for _ in range(5)] == [None] * 5
        assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
    assert len(tries) == nursery.MOST_FAILURES
    mother.close()


ADOPTIVE = """
import os
from semipd_engine.process import adopt_orphans, bury_strangers
adopt_orphans()
bury_strangers(())
reading, writing = os.pipe()
between = os.fork()
if between == 0:
    if (stranger := os.fork()):
        os.write(writing, str(stranger).encode())
    os._exit(3)
os.waitpid(between, 0)
stranger = int(os.read(reading, 32))
os.waitid(os.P_PID, stranger, os.WEXITED | os.WNOWAIT)
waiting, over = os.pipe()
known = os.fork()
if known == 0:
    os.close(over)
    os.read(waiting, 1)
    os._exit(7)
bury_strangers({known})
print(os.path.exists(f"/proc/{stranger}"))
os.close(over)
os.waitid(os.P_PID, known, os.WEXITED | os.WNOWAIT)
bury_strangers({known})
print(os.waitstatus_to_exitcode(os.waitpid(known, 0)[1]))
"""


def test_who_adopts_buries_strangers_and_takes_nobody_elses_status() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ADOPTIVE], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout.split(), done.stderr) == (["False", "7"], "")


def test_who_has_touched_the_device_or_has_threads_forks_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert "threads, which a fork would not have" in zygote.obstacle()
    finally:
        over.set()
        thread.join()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert zygote.obstacle() == "the imports have touched the device"


def test_the_imports_of_a_worker_touch_no_device_and_start_no_thread() -> None:
    script = "from importlib import import_module\nfrom semipd_engine.worker import zygote\n"
    script += "[import_module(name) for name in zygote.NEEDED]\nprint(zygote.obstacle() or 'none')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.stdout.strip(), done.returncode) == ("none", 0), done.stderr
