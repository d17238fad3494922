"""How a call of the check ends before its time: by a signal, with what its part had started; and by force."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gpu.archive import write_archive
from tests.gpu.check.ending import end, session

from e2e.lib.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("as_at_a_terminal")]

ROOT = Path(__file__).resolve().parents[2]
ORDERLY = """
import os, signal, subprocess, sys, time
def end(*_):
    child.terminate(), child.wait()
    open(os.environ["WORD"], "w").write("all I started has ended")
    sys.exit(0)
child = subprocess.Popen(["sleep", "600"])
signal.signal(signal.SIGTERM, end)
open(sys.argv[sys.argv.index("--out") + 1], "w").write('[{"section": "env"}]')
open(os.environ["READY"], "w").write(str(os.getpid()))
time.sleep(600)
"""
STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
print(flush=True)
child.wait()
"""
AS_MPS_IS_HELD = "import sys; sys.stdin.read(); open({word!r}, 'w').write('MPS is told to quit')"
FOREVER = "import time; time.sleep(600)"


def started(tmp_path: Path, archived: bool) -> subprocess.Popen[str]:
    """The check, whose part runs; `room` is its folder for temporary files."""
    probe, ready = tmp_path / "probe.py", tmp_path / "ready"
    for name in ("wheels", "room"):
        (tmp_path / name).mkdir()
    probe.write_text(ORDERLY)
    what = [str(write_archive(tmp_path))] if archived else ["-m", "tests.gpu.check"]
    flags = ["--device", "cpu", "--only", "probe,machine", "--probe", str(probe), "--out", str(tmp_path / "out")]
    command = [sys.executable, *what, *flags, "--wheels", str(tmp_path / "wheels")]
    files = {"READY": str(ready), "WORD": str(tmp_path / "word"), "TMPDIR": str(tmp_path / "room")}
    pipe = subprocess.PIPE
    running = subprocess.Popen(command, cwd=ROOT, env=os.environ | files, stdout=pipe, stderr=pipe, text=True)
    wait_until(lambda: ready.exists() and ready.read_text(), describe="the part")
    return running


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_part_and_makes_the_report(
    number: signal.Signals, status: int, archived: bool, tmp_path: Path
) -> None:
    """The signal comes to the check alone, as from a supervisor."""
    running, out = started(tmp_path, archived), tmp_path / "out"
    running.send_signal(number)
    said, wrong = running.communicate(timeout=PATIENCE_S)
    assert (running.returncode, wrong) == (status, ""), said + wrong
    assert (tmp_path / "word").exists(), "it was told, not killed"
    part = int((tmp_path / "ready").read_text())
    assert session(part) == [] and list((tmp_path / "room").iterdir()) == []
    report = json.loads((out / "report.json").read_text())
    (found,) = report["parts"]
    assert report["interrupted"] == number.name and (found["name"], found["outcome"]) == ("probe", "interrupted")
    assert found["figures"]["rows"] == 1 and f"Interrupted by {number.name}" in (out / "report.md").read_text()


def test_the_report_is_made_when_nobody_reads_what_is_said(tmp_path: Path) -> None:
    """A terminal that has gone, or a pipe that was closed."""
    running = started(tmp_path, archived=False)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    running.send_signal(signal.SIGTERM)
    assert (running.wait(PATIENCE_S), running.stderr.read()) == (143, "")
    assert (tmp_path / "out" / "report.md").exists() and (tmp_path / "word").exists()


def stubborn(child: str) -> subprocess.Popen[bytes]:
    """A part in a session of its own that does not hear, and its child."""
    command = [sys.executable, "-c", STUBBORN, child]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline()
    return process


def test_a_part_that_does_not_hear_is_killed_and_who_holds_mps_ends_it(tmp_path: Path) -> None:
    """By its input's end: killing both at once would leave MPS behind."""
    word = tmp_path / "word"
    process = stubborn(AS_MPS_IS_HELD.format(word=str(word)))
    end(process, patience=0.2, rest=60)
    assert process.returncode == -signal.SIGKILL and word.exists() and session(process.pid) == []


def test_what_does_not_end_by_itself_is_killed_as_well() -> None:
    process = stubborn(FOREVER)
    assert len(session(process.pid)) == 2
    end(process, patience=0.2, rest=0.2)
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: session(process.pid) == [], describe="an empty session")
