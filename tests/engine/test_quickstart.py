"""The commands of docs/quickstart.md for a machine without Kubernetes, as they stand; and README shows no others."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from e2e.lib import pages

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text()
SHOWN_ELSEWHERE = ("-S", "--fail-with-body", "--header", "-i")
"""tests/unit/test_pages.py shows what their loss does: the first two matter where a request is refused, the engine
takes any type for JSON, and a file that is not changed is noticed in the next block."""
REPOSITORY = "https://github.com/semipd/semipd.git"


def committed(tree: Path, to: Path) -> Path:
    """A repository that holds the tree as it is, what is not committed yet included."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=tree, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (tree / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, to / name)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "the tree"]):
        subprocess.run(["git", *command], cwd=to, check=True)
    return to


def test_from_git_clone_to_an_answer(tmp_path: Path) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 8000)) != 0, "port 8000 is taken; the page's commands need it"
    source = committed(ROOT, tmp_path / "source")
    clone = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{source}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
    }
    (tmp_path / "home").mkdir()
    with pages.Shell(tmp_path / "home", clone) as shell:
        for block in pages.blocks(PAGE, "Without Kubernetes"):
            shell.run(block, 180)  # first: whatever fails below fails for its change
            assert not shell.survivors(block, 60, SHOWN_ELSEWHERE)


def test_the_readme_shows_commands_of_the_quick_start_only() -> None:
    known = {line for block in pages.blocks(PAGE) for line in block.commands.splitlines()}
    for block in pages.blocks((ROOT / "README.md").read_text()):
        for line in block.commands.splitlines():
            assert line in known, f"README.md line {block.line}: {line!r} is run by no test"
