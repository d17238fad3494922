"""Background jobs with real processes: order, failure with the log's end, suspension."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from e2e.demo.jobs import Job, Jobs, State
from e2e.demo.outcome import DemoError
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.unit


def job(tmp_path: Path, name: str, code: str, *needs: str) -> Job:
    return Job(name, [sys.executable, "-c", code], tmp_path / f"{name}.log", tmp_path, needs)


def run(*jobs: Job) -> Jobs:
    found = Jobs(jobs, Console(file=io.StringIO()))
    found.start()
    return found


def family(jobs: Jobs) -> list[psutil.Process]:
    """The job `parent` and what it has started."""
    process = jobs.jobs["parent"].process
    assert process is not None
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def test_a_job_starts_after_what_it_needs(tmp_path: Path) -> None:
    first = job(tmp_path, "first", "import time; time.sleep(0.3); open('made', 'w')")
    second = job(tmp_path, "second", "open('made')", "first")
    jobs = run(second, first)
    jobs.wait()
    assert first.state is second.state is State.DONE


def test_a_failure_is_told_with_the_end_of_its_log_and_stops_what_needs_it(tmp_path: Path) -> None:
    jobs = run(
        job(tmp_path, "bad", "import sys; print('compiling'); sys.exit('disk full')"),
        job(tmp_path, "after", "open('never', 'w')", "bad"),
        job(tmp_path, "apart", "pass"),
    )
    jobs.wait("apart")
    with pytest.raises(DemoError, match=r"(?s)bad failed.*disk full"):
        jobs.wait("after")
    assert not (tmp_path / "never").exists()


def test_suspended_jobs_stand_still_with_their_children_and_go_on(tmp_path: Path) -> None:
    count = "import time\nwhile True: open('count', 'a').write('x'); time.sleep(0.01)"
    jobs = run(job(tmp_path, "parent", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {count!r}])"))
    file = tmp_path / "count"
    try:
        wait_until(file.exists)
        with jobs.suspended():
            wait_until(lambda: {one.status() for one in family(jobs)} == {psutil.STATUS_STOPPED})
            before = file.stat().st_size
            time.sleep(0.3)
            assert file.stat().st_size == before
        wait_until(lambda: file.stat().st_size > before)
    finally:
        members = family(jobs)
        jobs.stop()
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in members))


def test_a_job_does_not_start_while_all_are_suspended(tmp_path: Path) -> None:
    jobs = Jobs([job(tmp_path, "late", "pass")], Console(file=io.StringIO()))
    with jobs.suspended():
        jobs.start()
        time.sleep(0.3)
        assert jobs.jobs["late"].state is State.WAITING
    jobs.wait()


def test_a_job_that_failed_before_it_had_a_log_is_named(tmp_path: Path) -> None:
    late = job(tmp_path, "late", "pass")
    jobs = Jobs([late], Console(file=io.StringIO()))
    jobs.stop()
    jobs.start()
    with pytest.raises(DemoError, match="late failed"):
        jobs.wait()
    assert not late.log.exists()


def test_unknown_need_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such job: b"):
        Jobs([job(tmp_path, "a", "pass", "b")], Console(file=io.StringIO()))
