"""`make bench-cpu` counts what else the machine does, from a process that never outlives the run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from bench.cpu import machine
from bench.cpu.machine import weigh_session
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def test_who_runs_and_does_not_belong_to_us_is_counted() -> None:
    assert machine.running("12 (a) b R) R 1 1") and not machine.running("12 (R) S 1 1")
    with subprocess.Popen(["sleep", "60"]) as child:
        assert machine.others(child.pid) >= 1, "this very thread runs, and is not the child's"
        child.kill()


def test_others_are_the_mean_of_a_turns_time(tmp_path: Path) -> None:
    watch = machine.Watch(tmp_path / "others")
    assert watch.others(0, 9) is None
    (tmp_path / "others").write_text("1.0 4\n2.0 1\n3.0 3\n4.0 9\n5.")
    assert watch.others(1.5, 3.5) == 2 and watch.others(7, 8) == 9
    assert watch.others(1.5, 60) is None and watch.others(60, 70) is None, (
        "the watcher has died: its last count says nothing of later turns"
    )


def test_who_rests_is_stopped_with_its_children_and_goes_on() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"]) as shell:
        parent = psutil.Process(shell.pid)
        wait_until(lambda: bool(parent.children()))
        (child,) = parent.children()
        with pytest.raises(KeyboardInterrupt), machine.resting([shell.pid]):
            wait_until(lambda: {parent.status(), child.status()} == {psutil.STATUS_STOPPED})
            raise KeyboardInterrupt
        wait_until(lambda: psutil.STATUS_STOPPED not in {parent.status(), child.status()})
        child.kill()
    with machine.resting([shell.pid]):
        pass  # it is gone, which is no error: a server may die in somebody else's turn


def watcher(parent: int, file: Path) -> psutil.Process:
    """The one that writes `file`, once it does."""
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    (found,) = (one for one in psutil.Process(parent).children() if str(file) in one.cmdline())
    return found


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_watcher_ends_with_the_block(tmp_path: Path) -> None:
    with machine.watching(tmp_path) as watch:
        process = watcher(psutil.Process().pid, watch.file)
        at, count = watch.file.read_text().split()[:2]
        assert os.getpgid(process.pid) == process.pid, "no traceback of it where Ctrl-C reaches all of a terminal"
    assert gone(process) and float(at) > 0 and int(count) >= 0


def test_the_watcher_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from bench.cpu.machine import watching

        with watching(Path(sys.argv[1])):
            time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT) as parent:
        try:
            process = watcher(parent.pid, tmp_path / "others")
        finally:
            parent.kill()
    wait_until(lambda: gone(process))


def test_who_gives_way_to_the_others_gives_way_to_them_when_all_weigh_otherwise() -> None:
    """Downwards, which anybody may; in a process of its own, for nobody may go back."""
    script = textwrap.dedent("""
        import os, subprocess
        from bench.cpu.machine import _weigh

        def niceness(pid): return os.getpriority(os.PRIO_PROCESS, pid) - before

        before = os.getpriority(os.PRIO_PROCESS, 0)
        with subprocess.Popen(["nice", "-n", "5", "sleep", "60"]) as child:
            try:
                while niceness(child.pid) != 5:
                    pass
                _weigh(3)
                print(niceness(0), niceness(child.pid))
            finally:
                child.kill()
    """)
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ["3", "8"], found.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/autogroup-25 nice 0\n", "-20"),
        ("/autogroup-25 nice -20\n", "/autogroup-25 nice -20\n"),  # nothing is written that holds
        ("", ""),  # the kernel would refuse: a task of no session (EINVAL)
    ],
)
def test_a_session_is_weighed_where_there_is_one_and_it_weighs_otherwise(
    tmp_path: Path, before: str, after: str
) -> None:
    file = tmp_path / "autogroup"
    file.write_text(before)
    weigh_session(file, -20)
    assert file.read_text() == after


def test_a_kernel_without_sessions_is_asked_for_none(tmp_path: Path) -> None:
    weigh_session(tmp_path / "autogroup", -20)
    assert not list(tmp_path.iterdir())
