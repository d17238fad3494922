"""How ``semipd run`` ends: real programs, one line of the cause, and an exit status that a script can tell apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.model_folder import write_model

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("as_at_a_terminal")]
ROOT = Path(__file__).resolve().parents[2]
RUN = (sys.executable, "-m", "semipd_cli", "run", "--port", "0")


@pytest.mark.parametrize("mode", ["Manual", "Disabled"])
def test_a_gpu_service_without_a_gpu_ends_with_one_line(mode: str) -> None:
    """Nobody adds a GPU to a running process. It is said before the model is looked for, which may be a download."""
    command = [*RUN, "-f", str(ROOT / "examples/gpu.yaml"), "--set", f"partition.mode={mode}"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, env=hidden)
    assert (ended.returncode, ended.stdout) == (1, ""), "nothing was started"
    (line,) = ended.stderr.splitlines()
    said = "engine.device is cuda, and no NVIDIA GPU is visible here: use --set engine.device=cpu"
    assert line == f"semipd run: {said}"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_never_ready_does_not_end_as_one_that_served(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    write_model(tmp_path / "model")
    command = [*RUN, "-f", str(ROOT / "examples/cpu.yaml"), "--set", f"model.uri=file://{tmp_path / 'model'}"]
    token = tmp_path / "token"
    token.write_text("x" * 100)
    command += ["--log-file", str(tmp_path / "log"), "--token-file", str(token)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "ready=False" not in process.stdout.readline():
        assert process.poll() is None, "it ended before it was asked to"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (status, "")
    assert "draining" in out
    assert len(bytes.fromhex(token.read_text())) == 32 and token.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_before_anything_is_started_is_no_traceback(tmp_path: Path) -> None:
    """A download or a check is cut off as well: here the model's configuration is a pipe that nobody writes to."""
    folder = write_model(tmp_path / "model")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    command = [*RUN, "-f", str(ROOT / "examples/cpu.yaml"), "--set", f"model.uri=file://{folder}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    with (folder / "config.json").open("w"):  # opens once the check reads it
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "semipd_cli" not in said, "no traceback of ours"
