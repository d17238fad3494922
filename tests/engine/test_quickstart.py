"""The commands of docs/quickstart.md for a machine without Kubernetes, as they stand."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import venv
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import pytest
from uv import find_uv_bin

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


@pytest.fixture
def torch_index(tmp_path: Path) -> Iterator[str]:
    """An index as download.pytorch.org/whl/cpu is, whose torch is empty."""
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))[
        7:
    ]
    name = f"torch-{pinned}+cpu"
    folder = tmp_path / "index" / "torch"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        meta = {"METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {pinned}+cpu\n", "RECORD": ""}
        meta["WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        for file, text in meta.items():
            wheel.writestr(f"{name}.dist-info/{file}", text)
    (folder / "index.html").write_text(f'<a href="{quote(name)}-py3-none-any.whl">torch</a>')
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_torch_without_cuda_stays_and_brings_no_cuda(tmp_path: Path, torch_index: str) -> None:
    """What `make venv TORCH_INDEX=…` does to a new environment, but for its downloads: they are only told."""
    script = (ROOT / "hack" / "venv").read_text()
    commands = re.search(r'^if \[ -n "\$\{TORCH_INDEX:-\}" \]; then\n(.*?)^else$', script, re.MULTILINE | re.DOTALL)
    assert commands and commands[1].count("uv") == 2
    environment, told = tmp_path / "venv", tmp_path / "told"
    venv.create(environment, symlinks=True)
    uv = environment / "bin" / "uv"
    uv.write_text(
        f'#!/bin/sh\ncase "$*" in *" -e "*) set -- "$@" --dry-run;; esac\nexec {find_uv_bin()} "$@" 2>>{told}\n'
    )
    uv.chmod(0o755)
    env = os.environ | {"venv": str(environment), "TORCH_INDEX": torch_index}
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands[1]], cwd=ROOT, env=env, check=True)
    coming = re.findall(r"^ \+ (\S+)==(\S+)", told.read_text(), re.MULTILINE)
    names = [name for name, _ in coming]
    assert names.count("torch") == 1 and ("torch", f"{version('torch').partition('+')[0]}+cpu") in coming
    assert len(names) > 80 and "transformers" in names
    assert [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))] == ["nvidia-ml-py"], "NVML alone"
