"""The life of the api process: back-pressure, disconnects, outages of core, API key, drain, parent's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import psutil
import pytest
from tests.unit.server.api_process import Api, StartApi
from tokenizers import Tokenizer

from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_engine.server.admission import ENDPOINT_LAG_SECONDS, OUTAGE_GRACE_SECONDS

pytestmark = pytest.mark.unit
LONG = {"x-request-timeout-ms": "60000"}


def test_title_and_probes(api: Api) -> None:
    assert psutil.Process(api.process.pid).cmdline()[0] == "semipd: api"
    assert api.client.get("/health").status_code == 200
    assert api.client.get("/ready").json() == {"ready": True, "reason": None}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_its_request(api: Api, stream: bool) -> None:
    api.core.seconds_per_token = 0.05
    with pytest.raises(httpx.ReadTimeout):
        body = {"prompt": "The", "max_tokens": 200, "stream": stream, "n": 2, "seed": 1}
        with httpx.stream("POST", f"{api.url}/v1/completions", json=body, timeout=0.3) as response:
            if stream:
                next(response.iter_bytes())
                raise httpx.ReadTimeout("left")
            response.read()
    wait_until(lambda: sorted(api.core.aborted) == sorted(add.key for add in api.core.added))


def test_a_full_queue_answers_429_before_tokenising(start_api: StartApi) -> None:
    api = start_api("--max-queued-requests", "2")
    api.core.hold = True
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(api.complete, "The", max_tokens=2) for _ in range(2)]
        wait_until(lambda: len(api.core.added) == 2)
        refused = api.complete("dog " * 2_000)  # whoever tokenised it would find it too long: 400
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert "2" in refused.json()["error"]["message"]
        api.core.set_state(prefilling=1)
        api.core.hold = False
        wait_until(lambda: api.complete("The", max_tokens=2).status_code == 200)
        assert 'semipd_rejected_requests_total{model_name="letters",reason="queue_full"}' in api.metrics()
        api.core.crash()
        assert [future.result().status_code for future in waiting] == [503, 503]


def test_core_hears_how_large_a_refused_request_is(start_api: StartApi, tokenizer: Tokenizer) -> None:
    """Whoever controls the load must count its work, though nobody has tokenised it."""
    api = start_api("--max-queued-requests", "1")
    text = "The quick brown fox jumps over the lazy dog. "
    assert api.complete(text, max_tokens=1).status_code == 200, "from here on the api knows this tokenizer's rate"
    api.core.hold = True
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.complete, "The")
        wait_until(lambda: len(api.core.added) == 2)
        assert api.complete([[5] * 70, [5] * 9], n=2).status_code == 429
        assert api.complete(text * 5).status_code == 429
        assert api.chat(text * 100).status_code == 429
        api.core.crash()
        assert waiting.result().status_code == 503
    *exact, words, chat = [refused.prompt_tokens for refused in api.core.rejected]
    assert exact == [70, 70, 9, 9]
    assert words == pytest.approx(len(tokenizer.encode(text * 5).ids), rel=0.1)
    assert chat == api.core.state.max_model_len, "a longer one would not be work, but an error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_time_is_over_is_ended_everywhere(start_api: StartApi, stream: bool) -> None:
    api = start_api("--request-timeout", "0.4")
    api.core.seconds_per_token = 0.1
    later: list[int] = []

    def served_again() -> bool:
        """Then core has read all that was sent before."""
        later.append(api.complete(max_tokens=1).status_code)
        return later[-1] == 200

    for headers, seconds in (({}, "0.4"), ({"x-request-timeout-ms": "150"}, "0.15"), (LONG, "0.4")):
        api.core.added.clear()
        api.core.aborted.clear()
        body = {"prompt": "The", "max_tokens": 200, "stream": stream, "n": 2}
        answer = api.client.post("/v1/completions", json=body, headers=headers)
        begun = answer.status_code == 200
        if begun:
            *_, last, end = answer.text.split("\n\n")
            assert stream and end == "" and '"token' not in last
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            error = answer.json()["error"]
            assert answer.status_code == 504
        assert error["code"] == "deadline_exceeded" and f"within {seconds} s" in error["message"]
        wait_until(served_again, describe=lambda: later)
        keys = [add.key for add in api.core.added if add.sampling.max_tokens == 200]
        # On a machine that stood still it was over before core heard of it.
        assert set(keys) <= set(api.core.aborted) and len(keys) in ((2,) if begun else (0, 2))
    metrics = api.metrics()
    expired = 3 + len(later) - later.count(200)
    assert f'semipd_expired_requests_total{{model_name="letters"}} {expired}.0' in metrics
    assert "semipd_rejected_requests_total{" not in metrics, "they were run"
    for bad in ("0", "-5", "1.5", "soon", "", "9999999999"):
        refused = api.client.post("/v1/completions", json=body, headers={"x-request-timeout-ms": bad})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-request-timeout-ms")


def test_priority_and_a_wished_time_to_the_first_token_reach_core(api: Api) -> None:
    """The stricter of two headers counts. Who missed its own wish is counted."""
    body = {"prompt": "The", "max_tokens": 1}
    api.client.post("/v1/completions", json=body | {"priority": -2}, headers={"x-slo-ttft-ms": "60000"})
    api.core.seconds_per_token = 0.05
    both = {"x-slo-ttft-ms": "2000", "x-llm-d-slo-ttft-ms": "1"}
    assert api.client.post("/v1/completions", json=body, headers=both).status_code == 200
    assert api.client.post("/v1/completions", json=body).status_code == 200
    assert [(add.priority, add.ttft_target) for add in api.core.added] == [(-2, 60.0), (0, 0.001), (0, None)]
    assert 'semipd_ttft_target_misses_total{model_name="letters"} 1.0' in api.metrics()
    refused = api.client.post("/v1/completions", json=body, headers={"x-slo-ttft-ms": "soon"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-slo-ttft-ms")
    assert api.complete("The", priority="high").json()["error"]["param"] == "priority"


def test_a_wished_time_per_token_reaches_core_and_is_counted_when_missed(api: Api) -> None:
    api.core.seconds_per_token = 0.05
    body = {"prompt": "The", "max_tokens": 4, "ignore_eos": True}
    for headers in ({"x-slo-tpot-ms": "1"}, {"x-llm-d-slo-tpot-ms": "60000"}, {}):
        assert api.client.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert [add.tpot_target for add in api.core.added] == [0.001, 60.0, None]
    assert 'semipd_tpot_target_misses_total{model_name="letters"} 1.0' in api.metrics()
    refused = api.client.post("/v1/completions", json=body, headers={"x-slo-tpot-ms": "-1"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-slo-tpot-ms")


def test_requests_reach_core_in_their_order(start_api: StartApi) -> None:
    """Bodies of like size do, however long the first one takes to be tokenised."""
    api = start_api()
    api.core.set_state(max_model_len=10_000_000)
    wait_until(lambda: api.client.get("/v1/models").json()["data"][0]["max_model_len"] == 10_000_000)
    api.core.hold = True  # none ends before all were counted
    with ThreadPoolExecutor(3) as pool:
        for seed, words in enumerate((300_000, 20_000, 20_000)):
            pool.submit(api.complete, "dog " * words, max_tokens=1, seed=seed)
            wait_until(lambda many=seed + 1: api.client.get("/load").json()["server_load"] == many)
        wait_until(lambda: len(api.core.added) == 3)
        api.core.crash()
    assert [add.sampling.seed for add in api.core.added] == [0, 1, 2]


def test_a_lost_core_is_told_to_everyone_before_there_is_a_new_one(start_api: StartApi) -> None:
    api = start_api()
    api.core.steps = asyncio.Semaphore(0)
    with ThreadPoolExecutor(9) as pool:
        plain = [pool.submit(api.complete, "The", max_tokens=200) for _ in range(4)]
        streamed = [pool.submit(api.complete, "The", max_tokens=200, stream=True) for _ in range(4)]
        wait_until(lambda: len(api.core.added) == 8)
        for _ in range(8 * 3):  # they take turns
            api.core.step()
        first_tokens = 'vllm:time_to_first_token_seconds_count{model_name="letters"} 8.0'
        wait_until(lambda: first_tokens in api.metrics(), describe=api.metrics)
        crashed = time.monotonic()
        api.core.crash()
        ready = api.client.get("/ready").status_code
        answers, streams = [f.result() for f in plain], [f.result() for f in streamed]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarted")
        assert answer.headers["retry-after"]
    for stream in streams:
        *lines, last, rest = stream.text.split("\n\n")
        assert lines and rest == ""
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_restarted"
    # A short outage: the probe stays up, and a request sent meanwhile waits for the new core. On a machine that stood
    # still it was a long one.
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(api.complete, "The", max_tokens=2)
        time.sleep(0.3)
        api.core.steps = None
        api.core.start()
        seen = (ready, patient.result().status_code)
    assert seen == (200, 200) or time.monotonic() - crashed > OUTAGE_GRACE_SECONDS, seen
    wait_until(lambda: api.complete().status_code == 200)


def test_a_long_outage_is_not_ready(start_api: StartApi) -> None:
    api = start_api()
    began = time.monotonic()
    api.core.crash()
    wait_until(lambda: api.client.get("/ready").status_code == 503)
    assert time.monotonic() - began > OUTAGE_GRACE_SECONDS
    refused = api.complete()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert refused.headers["retry-after"]
    assert api.client.get("/health").status_code == 200
    assert 'semipd_core_connected{model_name="letters"} 0.0' in api.metrics()
    api.core.start()
    wait_until(lambda: api.client.get("/ready").status_code == 200)


def test_api_key(start_api: StartApi, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first\n")
    api = start_api("--api-key-file", str(file))
    open_paths = {path: api.client.get(path).status_code for path in ("/health", "/ready", "/metrics")}
    assert set(open_paths.values()) == {200}
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "first"}):
        answer = api.client.get("/v1/models", headers=header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert api.client.get("/v1/models", headers={"authorization": "Bearer first"}).status_code == 200
    file.write_text("second\n")
    assert api.client.get("/v1/models", headers={"authorization": "Bearer first"}).status_code == 401
    assert api.client.get("/v1/models", headers={"authorization": "Bearer second"}).status_code == 200
    file.unlink()
    assert api.client.get("/v1/models", headers={"authorization": "Bearer"}).status_code == 401


def test_sigterm_drains(start_api: StartApi) -> None:
    """The probe fails at once, new requests pass for five seconds, a running stream ends whole, the exit is clean."""
    api = start_api("--drain-seconds", "600")
    api.core.steps = asyncio.Semaphore(0)
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(api.complete, "The", max_tokens=100, stream=True)
        wait_until(lambda: api.core.added)
        asked = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        wait_until(lambda: api.client.get("/ready").status_code == 503)
        late = pool.submit(api.complete, max_tokens=1)
        wait_until(lambda: late.done() or len(api.core.added) == 2)
        for _ in range(3):  # the stream takes turns with it
            api.core.step()
        wait_until(late.done)
        passed = time.monotonic() - asked
        assert late.result().status_code == 200 or passed > ENDPOINT_LAG_SECONDS
        # While requests are taken, this one is found too long.
        refused = wait_until(lambda: answer if (answer := api.complete("dog " * 2_000)).status_code == 503 else None)
        assert refused.json()["error"]["code"] == "draining" and time.monotonic() - asked > ENDPOINT_LAG_SECONDS
        assert not stream.done()
        for _ in range(100):
            api.core.step()
        assert stream.result().text.endswith("data: [DONE]\n\n")
    assert api.process.wait(PATIENCE_S) == 0


def test_a_drain_ends_kept_connections(start_api: StartApi) -> None:
    """With their next answer, or without one when requests begin to be refused; a new connection is told so."""
    api = start_api("--drain-seconds", "600")
    api.core.steps = asyncio.Semaphore(0)
    place = httpx.URL(api.url).host, httpx.URL(api.url).port
    with (
        ThreadPoolExecutor(1) as pool,
        closing(HTTPConnection(*place)) as used,
        closing(HTTPConnection(*place)) as idle,
    ):
        running = pool.submit(api.complete, "The", max_tokens=1)
        wait_until(lambda: api.core.added)
        assert [_kept(used), _kept(idle)] == [True, True]
        asked = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        wait_until(lambda: api.client.get("/ready").status_code == 503)
        try:
            assert not _kept(used)
        except ConnectionError:  # it was idle when requests began to be refused
            assert time.monotonic() - asked > ENDPOINT_LAG_SECONDS
        idle.sock.settimeout(PATIENCE_S)
        assert idle.sock.recv(1) == b""  # nobody asked anything
        refused = api.complete("The")
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        api.core.step()
        assert running.result().status_code == 200
    assert api.process.wait(PATIENCE_S) == 0


def _kept(connection: HTTPConnection) -> bool:
    """After an answer, the connection may be used again."""
    connection.request("GET", "/health")
    connection.getresponse().read()
    return connection.sock is not None


def test_a_drain_ends_what_does_not_finish(start_api: StartApi) -> None:
    api = start_api("--drain-seconds", "1")
    api.core.hold = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.complete, "The")
        wait_until(lambda: api.core.added)
        api.process.send_signal(signal.SIGTERM)
        assert (answer.result().status_code, answer.result().json()["error"]["code"]) == (503, "draining")
    assert api.process.wait(PATIENCE_S) == 0


def test_a_drain_ends_what_core_does_not_have_yet(start_api: StartApi) -> None:
    """Its grammar is never tried, for the process that would is stopped; that ends with the api all the same."""
    api = start_api("--drain-seconds", "1")
    (judge,) = wait_until(psutil.Process(api.process.pid).children)
    judge.suspend()
    assert api.chat(response_format={"type": "text"}).status_code == 200, "it asks for none"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.complete, "The", guided_regex="a")
        wait_until(lambda: api.client.get("/load").json() == {"server_load": 1})
        api.process.send_signal(signal.SIGTERM)
        assert (answer.result().status_code, answer.result().json()["error"]["code"]) == (503, "draining")
    assert api.process.wait(PATIENCE_S) == 0 and not judge.is_running()


def test_it_dies_with_its_parent(model_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semipd_engine.server", "--model", str(model_dir), "--run-dir", str(tmp_path)]
    code = f"import subprocess; p = subprocess.Popen({[*command, '--port', '0']!r}); print(p.pid, flush=True); p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_until(lambda: (tmp_path / "api.port").exists())
    parent.kill()
    parent.wait()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "x"], "port"),
        (["--max-queued-requests", "0"], "--max-queued-requests 0"),
        (["--modle", "x"], "--modle"),
    ],
)
def test_bad_flags_are_named(model_dir: Path, tmp_path: Path, flags: list[str], words: str) -> None:
    command = [sys.executable, "-m", "semipd_engine.server", "--model", str(model_dir), "--run-dir", str(tmp_path)]
    result = subprocess.run([*command, *flags], capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 2 and words in result.stderr


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semipd_engine.server", "--model", str(tmp_path), "--run-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "config.json is missing" in result.stderr
