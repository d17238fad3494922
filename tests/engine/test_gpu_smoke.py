"""The dry run of ``make gpu-smoke``: to its end on the CPU, so that no minute on a GPU is lost to a slip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

PARTS = {"machine", "MPS", "rungs", "exact: tiny qwen2", "memory and switches"}


def test_the_dry_run_reaches_its_end(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.gpu.smoke", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    parts = {part["name"]: part for part in json.loads((tmp_path / "smoke.json").read_text())["parts"]}
    assert set(parts) == PARTS
    assert {name for name, part in parts.items() if part["outcome"] != "ok"} == {"MPS"}
    assert parts["MPS"]["outcome"] == "skipped" and "dry run" in parts["MPS"]["problem"]
    exact = parts["exact: tiny qwen2"]["figures"]
    assert exact["tokens compared"] == 8 * 48
    assert {row["killed"] for row in exact["after kill -9"]} == {
        f"{phase} {percent} %" for phase, own in (("prefill", 60), ("decode", 40)) for percent in (own, 100)
    }
    switches = parts["memory and switches"]["figures"]["switches under load"]
    assert [row["gaps"] > 0 for row in switches] == [True] * 3
    text = (tmp_path / "smoke.md").read_text()
    assert text.startswith("# Dry run on the CPU") and "| killed |" in text
