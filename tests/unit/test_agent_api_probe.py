"""The api process seen from outside: dead, hung, looping, never started; killed for memory; either address family."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from tests.unit.agent_bench import Bench, config

from e2e.lib.process import free_port
from e2e.lib.waiting import PATIENCE_S
from semipd_agent import api_probe
from semipd_agent.__main__ import listen, parse_engine_flags
from semipd_agent.api_probe import HUNG_SECONDS, NAMED_AFTER_SECONDS, ApiProbe
from semipd_agent.contract import EnginePhase, EngineStatus
from semipd_agent.engine_report import judged
from semipd_agent.memory_limit import MemoryLimit
from semipd_agent.readiness import ReadyGate
from semipd_engine.contract import no_api_key
from semipd_engine.process import bind

pytestmark = pytest.mark.unit


async def probed(folder: Path, bench: Bench, host: str = "127.0.0.1") -> ApiProbe:
    probe = ApiProbe(folder, host, bench.clock)
    await probe.ask()
    bench.clock.now += NAMED_AFTER_SECONDS
    return probe


async def test_an_api_that_never_started(tmp_path: Path) -> None:
    probe = ApiProbe(tmp_path, "::", Bench(config()).clock)
    assert not probe.answers and probe.problem() == "", "the first seconds are for it to start"
    probe = await probed(tmp_path, Bench(config()))
    assert not probe.answers and "has not opened its port" in probe.problem()


async def test_a_dead_api_refuses_connections(tmp_path: Path) -> None:
    (tmp_path / "api.port").write_text(f"{free_port()}\n")
    probe = await probed(tmp_path, Bench(config()))
    assert not probe.answers and "cannot be reached" in probe.problem()


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("hang", "does not answer within 0.2 s"),
        ("close", "the connection was closed"),
        ("500", "answers /health with 500"),
        ("garbage", "cannot be reached"),
    ],
)
async def test_an_api_that_hangs_or_fails_is_seen_and_seen_to_recover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, words: str
) -> None:
    monkeypatch.setattr(api_probe, "TIMEOUT_SECONDS", 0.2 if behaviour == "hang" else PATIENCE_S)
    answers = {"500": b"HTTP/1.1 500 no\r\n\r\n", "garbage": b"\x00 \xff\r\n", "200": b"HTTP/1.1 200 OK\r\n\r\n"}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if behaviour != "hang":
            writer.write(answers.get(behaviour, b""))
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        (tmp_path / "api.port").write_text(f"{server.sockets[0].getsockname()[1]}\n")
        bench = Bench(config())
        probe = await probed(tmp_path, bench)
        assert not probe.answers and words in probe.problem()
        behaviour = "200"
        monkeypatch.setattr(api_probe, "TIMEOUT_SECONDS", PATIENCE_S)
        await probe.ask()
        assert probe.answers and probe.problem() == ""


async def test_an_api_that_says_nothing_for_long_is_to_be_ended_once_and_one_that_is_away_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_probe, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # as a stopped process: the kernel takes connections
        (tmp_path / "api.port").write_text(f"{silent.getsockname()[1]}\n")
        bench = Bench(config())
        probe = ApiProbe(tmp_path, "127.0.0.1", bench.clock, hung_seconds=2.4)
        assert not probe.hangs()
        await probe.ask()
        bench.clock.now += NAMED_AFTER_SECONDS + HUNG_SECONDS  # frozen, and the agent with it
        assert not probe.hangs() and "it is killed after 2.4 s of that" in probe.problem()
        await probe.ask()
        assert probe.hangs() and not probe.hangs(), "once"
        await probe.ask()
    monkeypatch.setattr(api_probe, "TIMEOUT_SECONDS", PATIENCE_S)
    await probe.ask()
    assert not probe.hangs() and "it is restarted when it ends" in probe.problem()


def test_a_pod_whose_api_does_not_answer_is_not_ready_and_a_hiccup_flips_nothing() -> None:
    bench, gate = Bench(config()), ReadyGate()
    for at in (10.0, 11.0, 12.0):
        gate.update(bench.snapshot(monotonic_time=at), at, api_answers=at < 11.0)
    assert gate.ready(12.9)
    gate.update(bench.snapshot(monotonic_time=14.0), 14.0, api_answers=False)
    assert not gate.ready(14.0)
    gate.update(bench.snapshot(monotonic_time=15.0), 15.0, api_answers=True)
    assert gate.ready(15.0)


def test_the_report_names_the_process() -> None:
    good = EngineStatus(state=EnginePhase.READY, ready=True)
    assert judged(good, "", "killed") == good, "it was overcome"
    named = judged(good.model_copy(update={"ready": False}), "the process api hangs", "")
    assert (named.state, named.reason, named.message) == (
        EnginePhase.DEGRADED,
        "APINotResponding",
        "the process api hangs",
    )
    loading = EngineStatus(state=EnginePhase.LOADING, ready=False)
    assert judged(loading, "the process api hangs", "") == loading, "one thing at a time"
    killed = judged(loading, "", "a process was killed")
    assert (killed.state, killed.reason) == (EnginePhase.FAILED, "OutOfMemory")


@pytest.mark.parametrize(
    ("events", "limit"),
    [("memory.events", "memory.max"), ("memory/memory.oom_control", "memory/memory.limit_in_bytes")],
)
def test_kills_at_the_memory_limit_are_told_with_the_limit(tmp_path: Path, events: str, limit: str) -> None:
    (tmp_path / events).parent.mkdir(exist_ok=True)
    (tmp_path / events).write_text("low 0\noom 3\noom_kill 3\n")
    (tmp_path / limit).write_text("1610612736\n")
    memory = MemoryLimit(tmp_path)
    assert memory.problem() == "", "those were before us"
    (tmp_path / events).write_text("low 0\noom 4\noom_kill 4\n")
    assert memory.problem() == "a process was killed at the container's memory limit of 1.5 GiB"
    memory.forgive()
    assert memory.problem() == ""
    (tmp_path / events).write_text("low 0\noom 4\noom_kill 6\n")
    (tmp_path / limit).write_text("max\n")
    assert memory.problem() == "processes were 2 times killed at the container's memory limit"


def test_without_a_cgroup_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert MemoryLimit(tmp_path).problem() == ""


def reaches_itself_by_ipv6() -> bool:
    """A kernel may lack it, and a container the address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


@pytest.mark.parametrize("has_ipv6", [True, False] if reaches_itself_by_ipv6() else [False])
def test_any_address_is_both_families_or_what_there_is(monkeypatch: pytest.MonkeyPatch, has_ipv6: bool) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: has_ipv6)
    for make in (listen, bind):
        with make("::", 0) as listener:
            assert listener.family == (socket.AF_INET6 if has_ipv6 else socket.AF_INET)
            port = listener.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), 5).close()
            if has_ipv6:
                socket.create_connection(("::1", port), 5).close()


def test_keys_that_were_emptied_are_named_while_the_engine_serves_and_until_one_is_written(tmp_path: Path) -> None:
    """Fail closed: the api refuses everybody, and says so."""
    file, good = tmp_path / "api-keys", EngineStatus(state=EnginePhase.READY, ready=True)
    assert no_api_key(None) == "", "an open API"
    for content in (b"", b" \n\t\n"):
        file.write_bytes(content)
        named = judged(good, "", "", no_api_key(file))
        assert (named.state, named.reason, named.ready) == (EnginePhase.DEGRADED, "NoAPIKey", True)
        assert named.message == f"--api-key-file {file} holds no key: write one on each line"
    said = f"the engine's launcher exited with 2: semipd-engine serve: {no_api_key(file)}"
    refused = EngineStatus(state=EnginePhase.FAILED, ready=False, reason="LoadFailed", message=said)
    named = judged(refused, "", "", no_api_key(file))
    assert (named.state, named.reason, named.message) == (EnginePhase.FAILED, "NoAPIKey", no_api_key(file))
    other = refused.model_copy(update={"message": "config.json is empty"})
    assert judged(other, "", "", no_api_key(file)) == other, "something else is wrong, too, and came first"
    file.unlink()
    assert judged(good, "", "", no_api_key(file)).message.endswith("No such file or directory")
    gone = refused.model_copy(update={"message": f"semipd-engine serve: {no_api_key(file)}"})
    file.write_bytes(b"\nkey\n")
    assert judged(good, "", "", no_api_key(file)) == good
    for lacked in (refused, gone):
        named = judged(lacked, "", "", no_api_key(file))
        assert (named.state, named.reason) == (EnginePhase.STARTING, "Starting"), "what it ended of is over"
    assert judged(other, "", "", no_api_key(file)) == other


def test_the_agent_knows_the_engines_key_file() -> None:
    assert parse_engine_flags(["--model", "m", "--api-key-file", "/k/api-keys"]).api_key_file == Path("/k/api-keys")
    assert parse_engine_flags(["--model", "m"]).api_key_file is None


def test_the_threads_that_the_engine_is_given_are_the_agents_plans_too() -> None:
    assert [parse_engine_flags(flags).threads for flags in (["--model", "m"], ["--threads", "3"])] == [0, 3]
