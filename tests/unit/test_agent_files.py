"""The mounted configuration file (swapped as Kubernetes swaps it), and PID 1's duty to reap. Real files, real forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.lib.waiting import PATIENCE_S
from semipd_agent.config import ConfigFile, ConfigFileError
from semipd_agent.reaper import Reaper

pytestmark = pytest.mark.unit


def mount(folder: Path, name: str, text: str) -> Path:
    """Write a ConfigMap volume's next version and swap it in, as the kubelet does. Returns the file's path."""
    version = folder / f"..{name}"
    version.mkdir()
    (version / "agent.json").write_text(text)
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    link.rename(folder / "..data")
    file = folder / "agent.json"
    if not file.is_symlink():
        file.symlink_to("..data/agent.json")
    return file


def content(generation: int, tokens: list[str] | None = None) -> str:
    return json.dumps({"tokenSha256": tokens or [], "config": {"generation": generation}})


def test_a_swapped_symlink_is_a_change_and_an_equal_content_is_none(tmp_path: Path) -> None:
    file = ConfigFile(mount(tmp_path, "1", content(1)))
    assert file.load().config.generation == 1
    assert file.changed() is None
    mount(tmp_path, "2", content(2, ["ab"]))
    changed = file.changed()
    assert changed is not None and changed.config.generation == 2 and changed.token_sha256 == ("ab",)
    assert file.changed() is None
    mount(tmp_path, "3", content(2, ["ab"]))
    assert file.changed() is None


def test_a_broken_file_changes_nothing_until_it_is_mended(tmp_path: Path) -> None:
    file = ConfigFile(mount(tmp_path, "1", content(1)))
    file.load()
    mount(tmp_path, "2", '{"config": {"generation": -1}}')
    assert file.changed() is None
    (tmp_path / "..data").unlink()
    assert file.changed() is None
    mount(tmp_path, "3", content(3))
    mended = file.changed()
    assert mended is not None and mended.config.generation == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "document"),
        ('{"config": {"partition": {"split": {"prefillPercent": 0}}}}', "config.partition.split.prefillPercent"),
        ('{"config": {"slo": {"percentile": 142}}}', "config.slo.percentile"),
    ],
)
def test_a_bad_file_at_the_start_is_an_error_that_names_the_field(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "agent.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigFileError, match=words) as e:
        ConfigFile(path).load()
    assert str(path) in str(e.value)


# ---- reaper (in a process of its own: it takes every child there is) ------------------------------------------------

REAP = """
import os, subprocess, sys, time
from semipd_agent.reaper import Reaper, become_subreaper
become_subreaper()
reaper = Reaper()
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3); raise SystemExit(7)"])
reaper.adopt(own.pid, own.poll)
# The middle one exits at once; its child, which lives until we say, is a stranger that the kernel gives to us.
end, hold = os.pipe()
middle = subprocess.Popen(["sh", "-c", f"cat <&{end} >/dev/null & echo $!"], stdout=-1, text=True, pass_fds=[end])
reaper.adopt(middle.pid, middle.poll)
stranger = int(middle.stdout.readline())
deadline = time.monotonic() + 100
while int(open(f"/proc/{stranger}/stat").read().rsplit(")", 1)[1].split()[1]) != os.getpid():
    assert time.monotonic() < deadline, "not ours"
    reaper.reap()
    time.sleep(0.02)
os.close(hold)
while time.monotonic() < deadline and (own.returncode is None or reaper.strangers == 0):
    reaper.reap()
    time.sleep(0.02)
print(own.returncode, middle.returncode, reaper.strangers, os.path.exists(f"/proc/{stranger}"))
"""


def test_strangers_are_reaped_and_our_own_keep_their_exit_status() -> None:
    result = subprocess.run(
        [sys.executable, "-c", REAP], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert result.stdout.split() == ["7", "0", "1", "False"], result.stderr


def test_reaping_without_children_returns() -> None:
    """In a fork, which has none."""
    pid = os.fork()
    if pid == 0:
        Reaper().reap()
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
