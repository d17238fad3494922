"""The whole engine as a user starts it, ``semipd-engine serve``, and what tests ask of it over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from e2e.lib.waiting import PATIENCE_S, wait_until


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    url: str
    model: Path
    client: httpx.Client

    def complete(self, prompt: Any, **fields: Any) -> Any:
        response = self.client.post("/v1/completions", json={"prompt": prompt} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, prompt: Any, **fields: Any) -> list[Any]:
        text = self.client.post("/v1/completions", json={"prompt": prompt, "stream": True} | fields).text
        *events, done, _ = text.split("\n\n")
        assert done == "data: [DONE]", done
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def gauge(self, name: str, **labels: str) -> float:
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        raise AssertionError(name)

    def child(self, title: str) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if child.cmdline()[:1] == [title])

    def processes(self) -> set[int]:
        """All of the engine's, by their ids."""
        return {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}

    def idle(self) -> bool:
        running = self.gauge("vllm:num_requests_running") + self.gauge("vllm:num_requests_waiting")
        return running + self.gauge("semipd_kv_blocks", state="used") == 0


def serve(run_dir: Path, model: Path, *flags: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(model), "--run-dir", str(run_dir)]
    fixed = ["--device", "cpu", "--dtype", "float32", "--port", "0", "--kv-cache-memory", str(256 << 20)]
    process = subprocess.Popen([*command, *fixed, *flags])
    try:
        port = run_dir / "api.port"
        wait_until(lambda: port.exists() or process.poll() is not None)
        client = httpx.Client(base_url=f"http://127.0.0.1:{int(port.read_text())}", timeout=PATIENCE_S)
        wait_until(lambda: client.get("/ready").status_code == 200)
        yield Served(process, str(client.base_url), model, client)
        client.close()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
