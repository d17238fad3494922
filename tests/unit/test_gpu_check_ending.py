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

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.unit

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


@pytest.mark.parametrize(
    ("number", "status", "archived"),
    [
        (signal.SIGINT, 130, False),
        (signal.SIGTERM, 143, False),
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 143, True),
    ],
)
def test_a_signal_ends_the_part_and_makes_the_report(
    number: signal.Signals, status: int, archived: bool, tmp_path: Path
) -> None:
    """The signal comes to the check alone, as from a supervisor."""
    probe, out, room = tmp_path / "probe.py", tmp_path / "out", tmp_path / "room"
    (tmp_path / "wheels").mkdir()
    room.mkdir()
    probe.write_text(ORDERLY)
    ready, word = tmp_path / "ready", tmp_path / "word"
    what = [str(write_archive(tmp_path))] if archived else ["-m", "tests.gpu.check"]
    flags = ["--device", "cpu", "--only", "probe,machine", "--probe", str(probe), "--out", str(out)]
    command = [sys.executable, *what, *flags, "--wheels", str(tmp_path / "wheels")]
    environment = os.environ | {"READY": str(ready), "WORD": str(word), "TMPDIR": str(room)}
    pipe = subprocess.PIPE
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
    try:
        wait_until(lambda: ready.exists() and ready.read_text(), 60, "the part")
        running.send_signal(number)
        said, wrong = running.communicate(timeout=60)
    finally:
        running.kill()
    assert (running.returncode, wrong) == (status, ""), said + wrong
    assert word.exists(), "it was told, not killed"
    assert session(int(ready.read_text())) == [] and list(room.iterdir()) == []
    report = json.loads((out / "report.json").read_text())
    (part,) = report["parts"]
    assert report["interrupted"] == number.name and (part["name"], part["outcome"]) == ("probe", "interrupted")
    assert part["figures"]["rows"] == 1 and f"Interrupted by {number.name}" in (out / "report.md").read_text()


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
    wait_until(lambda: session(process.pid) == [], 30, "an empty session")
