"""``--device cuda`` where there is no GPU: one clear error, no hang, no restarts. A GPU is hidden from these tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.engine.harness import TORCH_RESIDENT, Engine

from e2e.lib.models import random_model
from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_engine.contract import Device, EngineOptions, EngineState
from semipd_engine.launcher import read_snapshot
from semipd_engine.process import REFUSED
from semipd_engine.resident.resident import RETRY_AFTER_SECONDS

pytestmark = pytest.mark.engine

HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}


def test_cuda_without_a_gpu_is_one_error_with_its_reason_and_remedy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(random_model()), "--port", "0"]
    command += ["--device", "cuda", "--await-partition", "--run-dir", str(tmp_path / "run")]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | HIDDEN, stderr=file, stdout=file)
    try:
        snapshot = wait_until(
            lambda: (s := read_snapshot(tmp_path / "run")) and s.state is EngineState.FAILED and s, describe="FAILED"
        )
        assert snapshot.reason == "NoGPU"
        assert "engine.device" in snapshot.message and "nvidia.com/gpu" in snapshot.message
        family = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        time.sleep(RETRY_AFTER_SECONDS + 1)  # what another start cannot mend is not started again
        assert {child.pid for child in psutil.Process(process.pid).children(recursive=True)} == family
        assert log.read_text().count("NoGPU") == 1
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0


def test_by_hand_cuda_without_a_gpu_ends_with_that_error() -> None:
    """A person waits: nothing is tried for ever, and the last line is the reason and what helps."""
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(random_model()), "--port", "0"]
    done = subprocess.run(
        [*command, "--device", "cuda"], env=os.environ | HIDDEN, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == REFUSED, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("the model cannot be served: NoGPU: --device cuda") and "nvidia.com/gpu" in last


def test_auto_without_a_gpu_is_the_cpu(tmp_path: Path) -> None:
    options = EngineOptions(
        model=random_model(), run_dir=tmp_path, device=Device.AUTO, max_model_len=64, kv_cache_memory=16 << 20
    )
    engine = Engine(options, TORCH_RESIDENT, **HIDDEN)
    try:
        model = engine.wait_state(seconds=120).model
        assert model is not None and (model.device, model.sm_count) == ("cpu", None)
    finally:
        engine.stop()
