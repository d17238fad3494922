"""``semipd run`` with device cuda on a machine without a GPU: real programs, one clear reason, and no end of trying."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.model_folder import write_model

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def conditions(status: Path) -> dict[str, dict[str, Any]]:
    if not status.exists():
        return {}
    return {c["type"]: c for c in json.loads(status.read_text())["status"].get("conditions", [])}


def test_a_gpu_service_without_a_gpu_says_so_everywhere_and_once(tmp_path: Path) -> None:
    status, log = tmp_path / "status.json", tmp_path / "log"
    write_model(tmp_path / "model")
    sets = [f"model.uri=file://{tmp_path / 'model'}"]
    command = [sys.executable, "-m", "semipd_cli", "run", "-f", str(ROOT / "examples/gpu.yaml"), "--port", "0"]
    command += [word for each in sets for word in ("--set", each)]
    command += ["--status-file", str(status), "--log-file", str(log)]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}  # a machine that has one hides it, and has no NVML then
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=hidden)
    try:

        def said() -> bool:
            assert process.poll() is None, log.read_text() if log.exists() else "no log"
            return conditions(status).get("Ready", {}).get("reason") in ("NoGPU", "MPSUnavailable")

        wait_until(said, describe=lambda: log.read_text() if log.exists() else "no log")
        shown = conditions(status)
        reason = shown["Ready"]["reason"]
        for kind in ("ModelReady", "PartitionApplied"):
            assert (shown[kind]["status"], shown[kind]["reason"]) == ("False", reason)
        time.sleep(3)
        assert process.poll() is None, "it waits for a GPU; it does not end, and starts nothing"
        errors = [line for line in log.read_text().splitlines() if " ERROR " in line]
        assert len(errors) == 1 and reason in errors[0] and "engine" in errors[0]
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sum("Warning MPSUnavailable" in line for line in out.splitlines()) == 1
