"""`make bench-cpu` with processes: a server's death costs samples and not the run; memory and load are read right."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from bench.cpu import figures, parts, run, schedule
from bench.cpu.identity import Identity
from bench.cpu.schedule import Turn
from bench.cpu.servers import SERVERS, Place, Server
from e2e.lib.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
MODEL = "llama-0.5b"
FAKE = textwrap.dedent("""
    import json, os, sys, time
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    left = int(sys.argv[2])  # requests that are answered before it dies, or refuses one
    dies = sys.argv[3] == "dies"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = json.dumps({"data": [{"id": "fake"}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            global left
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            left -= 1
            if left == -1 and not dies:
                return self.send_error(500)
            if left < 0 and dies:
                print("no memory is left", flush=True)
                os._exit(9)
            self.send_response(200)
            self.end_headers()
            for n in range(asked["max_tokens"]):
                choice = {"text": "x", "token_ids": [n], "finish_reason": None}
                self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n")
                self.wfile.flush()
                time.sleep(0.002)
            choice = {"text": "", "token_ids": [], "finish_reason": "length"}
            self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n")

        def log_message(self, *words):
            pass

    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
""")
FIRST_REQUESTS = 1 + 1 + 1 + 8 + 2
"""To a server that starts: is it ready, and the warm-up."""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that makes our client 50 ms late would have requests asked again, and the servers here count them."""
    monkeypatch.setattr(run, "assert_punctual", lambda records: None)


def fake(name: str, script: Path, answers: int, end: str = "dies") -> Server:
    def command(place: Place) -> list[str]:
        return [sys.executable, str(script), str(place.port), str(answers), end]

    return Server(name, command)


def test_a_servers_death_is_a_lost_sample_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies at its second sample, is started again, dies again, and is given up; its neighbour loses nothing."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setitem(SERVERS, "vllm", fake("vllm", script, FIRST_REQUESTS + 1))
    monkeypatch.setitem(SERVERS, "vllm-128", fake("vllm-128", script, 1000))
    monkeypatch.setitem(SERVERS, "vllm-64", Server("vllm-64", lambda _: [str(tmp_path / "is-not-there")]))
    todo = [
        Turn(MODEL, "speeds", number, "decode-128", name)
        for number in range(5)
        for name in ("vllm", "vllm-128", *(["vllm-64"] if number == 0 else []))
    ]
    said: list[str] = []
    run.carry_out(todo, tmp_path, None, Identity({MODEL: tmp_path}, parts.parts()), said.append)
    samples = schedule.read(tmp_path / "samples.jsonl")
    assert [sample.turn for sample in samples] == todo and len(said) == len(todo)
    of = {name: [s for s in samples if s.turn.contender == name] for name in ("vllm", "vllm-128", "vllm-64")}
    assert [bool(sample.error) for sample in of["vllm"]] == [False, True, False, True, True]
    assert "ended with 9" in of["vllm"][1].error and "no memory is left" in of["vllm"][1].error
    assert "not started a third time" in of["vllm"][4].error
    assert not [sample for sample in of["vllm-128"] if sample.error or not sample.figures["tokens_per_s"]]
    assert "is-not-there" in of["vllm-64"][0].error, "one that cannot be started is lost samples, too"
    assert "LOST" in said[said.index(next(line for line in said if "vllm #1" in line))]
    assert len({sample.run for sample in samples}) == 1 and all(sample.key for sample in samples)


def test_a_stream_that_failed_is_not_asked_again_until_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setitem(SERVERS, "vllm", fake("vllm", script, FIRST_REQUESTS, "refuses"))
    todo = [Turn(MODEL, "speeds", number, "decode-128", "vllm") for number in range(2)]
    run.carry_out(todo, tmp_path, None, Identity({MODEL: tmp_path}, parts.parts()), print)
    refused, answered = schedule.read(tmp_path / "samples.jsonl")
    assert "500" in refused.error and not refused.figures
    assert not answered.error and answered.figures["tokens_per_s"]


def test_a_probe_that_fails_says_why() -> None:
    with pytest.raises(figures.UnusableError, match=r"warmth ended with 2: .*invalid choice: 'warmth'"):
        run.probe("warmth", Path("no-such-model"))


@pytest.mark.usefixtures("as_at_a_terminal")
def test_a_probe_that_is_cut_off_ends_its_server_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with the model in memory was left running."""
    _stand_in(tmp_path, monkeypatch, f"sleep 0.5; touch {tmp_path}/ended; exit")
    with pytest.raises(subprocess.TimeoutExpired):
        run.probe("memory", Path("no-such-model"))
    assert (tmp_path / "ended").exists()


@pytest.mark.usefixtures("as_at_a_terminal")
def test_a_probe_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(tmp_path, monkeypatch, f"touch {tmp_path}/told")
    monkeypatch.setattr(run, "PROBE_ENDING_SECONDS", 1.0)
    with pytest.raises(subprocess.TimeoutExpired):
        run.probe("memory", Path("no-such-model"))
    wait_until((tmp_path / "told").exists, PATIENCE_S)


def _stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, at_interrupt: str) -> None:
    """For a probe that hangs; it is said to have taken too long once it is ready to be told."""
    script = folder / "python"
    trap = f"trap '{at_interrupt}' INT\ntouch {folder}/ready\n"
    script.write_text(f"#!/bin/sh\n{trap}while :; do sleep 0.1; done\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    communicate = subprocess.Popen.communicate

    def too_long(process: Any, *_: Any, timeout: float | None = None) -> Any:
        if timeout == run.PROBE_TIMEOUT_SECONDS:
            wait_until((folder / "ready").exists, PATIENCE_S)
            raise subprocess.TimeoutExpired("probe", timeout)
        return communicate(process, timeout=timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", too_long)
