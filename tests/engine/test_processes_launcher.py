"""``semipd-engine serve`` as a user runs it: one line when ready, kills of each process, drain, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from e2e.lib.models import random_model
from e2e.lib.process import runs
from e2e.lib.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.engine


class Served:
    """One ``semipd-engine serve`` on the tiny model."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(random_model()), "--port", "0"]
        flags = ("--device", "cpu", "--dtype", "float32", "--max-model-len", "1024", *flags)
        self.process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"ready at (http://127\.0\.0\.1:\d+)$", line.strip())
        assert found, line
        self.client = httpx.Client(base_url=found[1], timeout=60)

    def children(self) -> dict[str, psutil.Process]:
        """Processes by title, the workers included."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        named = {}
        for child in family:
            try:
                title = " ".join(child.cmdline())
            except psutil.NoSuchProcess:
                continue
            if title.startswith("semipd: "):
                named[title.removeprefix("semipd: ").strip()] = child
        return named

    def complete(self, prompt: str = "Hello", tokens: int = 16) -> str:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = self.client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def stream(self, tokens: int) -> Stream:
        return Stream(self.client, tokens)

    def ready(self) -> bool:
        try:
            return self.client.get("/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


class Stream(threading.Thread):
    """One streaming completion in the background."""

    def __init__(self, client: httpx.Client, tokens: int) -> None:
        super().__init__(daemon=True)
        self.chunks: list[dict[str, Any]] = []
        self.finished = False
        self._client, self._tokens = client, tokens
        self.start()

    def run(self) -> None:
        body = {"prompt": "Once", "max_tokens": self._tokens, "temperature": 0, "stream": True, "ignore_eos": True}
        try:
            with self._client.stream("POST", "/v1/completions", json=body) as answer:
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        self.finished = True
                    elif line.startswith("data: "):
                        self.chunks.append(json.loads(line.removeprefix("data: ")))
        except httpx.HTTPError:
            pass

    @property
    def failed(self) -> bool:
        return not self.finished or any("error" in chunk for chunk in self.chunks)

    def text(self) -> str:
        return "".join(choice["text"] for chunk in self.chunks for choice in chunk.get("choices", []))


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    if served.process.poll() is None:
        served.process.send_signal(signal.SIGINT)
        served.process.wait(PATIENCE_S)


FAMILY = {"api", "grammars", "core", "resident", "prefill", "decode"}


def test_processes_are_named_and_answer(served: Served) -> None:
    assert served.ready()
    wait_until(lambda: set(served.children()) == FAMILY, describe="all processes")
    assert served.complete() == served.complete()


def test_every_process_but_the_launcher_may_die(served: Served) -> None:
    expected = served.complete(tokens=24)
    first = served.children()
    for name in ("prefill", "decode"):
        first[name].kill()
        assert served.complete(tokens=24) == expected  # in the middle of the replacement

    running = served.stream(400)
    wait_until(lambda: len(running.chunks) > 5, describe="a running stream")
    served.children()["resident"].kill()
    running.join(PATIENCE_S)
    assert not running.failed  # it went on after the reload
    wait_until(served.ready, describe="/ready after the resident's death")
    assert served.complete(tokens=24) == expected

    family = served.children()
    resident = family["resident"].pid
    running = served.stream(900)
    wait_until(lambda: len(running.chunks) > 5, describe="a running stream", every_s=0.005)
    family["core"].kill()
    running.join(PATIENCE_S)
    assert running.failed and not running.is_alive(), "an error, and not a stream that waits"
    wait_until(served.ready, describe="/ready after core's death")
    assert served.children()["resident"].pid == resident
    assert served.complete(tokens=24) == expected

    served.children()["api"].kill()
    wait_until(served.ready, describe="/ready after the api's death")
    assert served.complete(tokens=24) == expected


def test_sigterm_drains(served: Served) -> None:
    family = served.children().values()
    running = served.stream(900)
    wait_until(lambda: len(running.chunks) > 5, describe="a running stream")
    served.process.terminate()
    wait_until(lambda: not served.ready(), describe="/ready to fail")
    assert served.complete()  # endpoints lag: still admitted
    assert served.process.wait(PATIENCE_S) == 0
    running.join(PATIENCE_S)
    assert not running.failed
    assert not any(process.is_running() for process in family)


def test_a_killed_launcher_leaves_nothing_behind() -> None:
    served = Served()
    family = list(
        wait_until(lambda: (c := served.children()).keys() == FAMILY and c, describe="all processes").values()
    )
    served.process.kill()
    served.process.wait()
    wait_until(lambda: not any(runs(process.pid) for process in family), describe="the family's end")


def test_a_broken_model_is_answered_with_its_reason(tmp_path: Path) -> None:
    """No crash loop: the API is up and says what is wrong."""
    broken = tmp_path / "model"
    source = random_model()
    broken.mkdir()
    for file in source.iterdir():
        (broken / file.name).symlink_to(file)
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").write_bytes(b"not a tensor file")
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(broken), "--port", "0"]
    process = subprocess.Popen([*command, "--run-dir", str(run_dir)], stdout=subprocess.DEVNULL)
    try:
        wait_until((run_dir / "api.port").exists, describe="the api")
        assert os.stat(run_dir).st_mode & 0o777 == 0o700  # noqa: PTH116
        url = f"http://127.0.0.1:{(run_dir / 'api.port').read_text().strip()}"

        def reason() -> str:
            answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x"})
            return answer.text if answer.status_code == 503 and "safetensors" in answer.text else ""

        wait_until(reason, describe="a 503 that names the file")
        port = (run_dir / "api.port").read_text()
        second = subprocess.run([*command, "--run-dir", str(run_dir)], capture_output=True, text=True, timeout=120)
        assert second.returncode == 75 and f"--run-dir {run_dir}" in second.stderr.splitlines()[-1]
        assert (run_dir / "api.port").read_text() == port, "the first one's sockets are let be"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0


def test_half_a_tokenizer_ends_the_engine_with_its_name(tmp_path: Path) -> None:
    """The resident loads the weights and says nothing: without the api it would be a silent port for ever."""
    model = tmp_path / "model"
    shutil.copytree(random_model(), model)
    tokenizer = model / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes()[:-100])
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(model), "--port", "0"]
    command += ["--device", "cpu", "--max-model-len", "1024", "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert str(tokenizer) in ended.stderr.splitlines()[-1]


def test_a_pool_too_small_for_a_sequence_ends_an_engine_that_a_person_started_with_the_remedy() -> None:
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(random_model()), "--port", "0"]
    command += ["--device", "cpu", "--kv-cache-memory", "4096"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert "OutOfMemory" in last and "--kv-cache-memory (engine.kvCacheMemory) is 4096: raise it to that" in last
    assert "started again" not in ended.stderr
