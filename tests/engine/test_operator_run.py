"""``semipd run`` with the real agent and engine: it answers, shows the operator's status, changes in place, drains."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.model_folder import write_model

from e2e.lib.models import random_model
from e2e.lib.process import answers, free_port
from e2e.lib.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.engine
EXAMPLE = Path(__file__).resolve().parents[2] / "examples/cpu.yaml"


def test_the_example_without_kubernetes(tmp_path: Path) -> None:
    manifest, shown, log = tmp_path / "m.yaml", tmp_path / "status.json", tmp_path / "log"
    obj = yaml.safe_load(EXAMPLE.read_text())
    manifest.write_text(yaml.safe_dump(obj))
    port = free_port()
    command = [sys.executable, "-m", "semipd_cli", "run", "-f", manifest, "--port", str(port)]
    command += ["--set", f"model.uri=file://{random_model('llama')}", "--set", "engine.maxModelLen=512"]
    process = subprocess.Popen(
        [*command, "--status-file", shown, "--log-file", log],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def status() -> dict[str, Any]:
        assert process.poll() is None, log.read_text()[-2000:]
        return json.loads(shown.read_text())["status"] if shown.exists() else {}

    def condition(kind: str) -> dict[str, Any]:
        return next((c for c in status().get("conditions", []) if c["type"] == kind), {})

    try:
        wait_until(lambda: condition("Ready").get("status") == "True")
        assert status()["partition"]["applied"] == {"prefillPercent": 50, "decodePercent": 50}
        assert status()["partition"]["enforced"] == "paced"
        body = json.dumps({"model": "smollm2-135m-instruct", "prompt": "hello", "max_tokens": 4}).encode()
        request = urllib.request.Request(
            f"{status()['url']}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4

        obj["spec"]["partition"] |= {"prefillPercent": 80}
        manifest.write_text(yaml.safe_dump(obj))
        wait_until(lambda: status()["partition"].get("applied") == {"prefillPercent": 80, "decodePercent": 50})
        assert wait_until(lambda: status()["observedGeneration"] == 2)
        (decision,) = status()["partition"]["decisions"]
        assert (decision["pod"], decision["reason"]) == ("smollm2-local", "ManualChange")

        process.send_signal(signal.SIGINT)
        lines, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, "Ctrl-C drains"
        assert "split=80/50" in lines and "draining" in lines
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_as_soon_as_it_answers_has_served(number: signal.Signals, tmp_path: Path) -> None:
    """Its users know that it is ready before the agent and `semipd run` do, who look once a second."""
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "semipd_cli", "run", "-f", EXAMPLE, "--port", str(port), "--log-file", log]
    command += ["--set", f"model.uri=file://{random_model('llama')}", "--set", "engine.maxModelLen=128"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/ready"))
        process.send_signal(number)
        lines, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, lines
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_weights_that_do_not_load_end_the_run(tmp_path: Path) -> None:
    """The folder is whole by its headers, but no number is one: whoever reads the numbers finds that out."""
    folder = write_model(tmp_path / "models" / "smollm2-135m-instruct")
    weights = folder / "model.safetensors"
    length = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    weights.write_bytes(weights.read_bytes()[:length] + b"\xff" * (weights.stat().st_size - length))
    command = [sys.executable, "-m", "semipd_cli", "run", "-f", str(EXAMPLE), "--claims", str(tmp_path), "--port", "0"]
    command += ["--set", "engine.maxModelLen=128", "--log-file", str(tmp_path / "log")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1, ended.stdout
    assert ended.stderr.startswith("semipd run: the model cannot be served: "), ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and str(folder) in ended.stderr
    assert "NotFinite" in ended.stderr and "NotFinite" not in ended.stdout, "it is said once"
    assert "draining" not in ended.stdout
