"""Runs core and resident as real processes and speaks to core's sockets as api and agent do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.lib.process import stop
from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_engine.contract import (
    CONTROL_REPLY,
    BlockCounts,
    EngineOptions,
    EngineSnapshot,
    EngineState,
    GetSnapshot,
    Observation,
    Phase,
    WorkerReport,
)
from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed
from semipd_engine.ipc.requests import AbortRequest, AddRequest, CoreState, CoreToApi, Outputs
from semipd_engine.ipc.tokens import Sampling, unpack_logprobs

FAKE_RESIDENT = "tests.engine.fake_resident"
TORCH_RESIDENT = "semipd_engine.resident"


@dataclass
class Stream:
    """What came back for one request."""

    key: str
    prompt: list[int]
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of the tokens, where `sampling` asks for them."""
    prompt_logprobs: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    error_code: str = ""
    first_token_at: float | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float = PATIENCE_S) -> Stream:
        assert self.done.wait(seconds), f"request {self.key} has {len(self.tokens)} tokens after {seconds} s"
        return self


class ApiClient:
    """The api's end of core.sock."""

    def __init__(self, run_dir: Path) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(run_dir / "core.sock"))
        self._channel: BlockingChannel[CoreToApi] = BlockingChannel(sock, CoreToApi)
        self._sender: BlockingChannel[CoreToApi] = BlockingChannel(sock.dup(), CoreToApi)
        self._streams: dict[str, Stream] = {}
        self._numbers = itertools.count()
        self._sending = threading.Lock()
        self.state: CoreState | None = None
        self.lost = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def add(self, prompt: Sequence[int], max_tokens: int, *, grammar: str = "", **sampling: Any) -> Stream:
        wanted = Sampling(temperature=0, max_tokens=max_tokens, **sampling)
        stream = Stream(f"r{next(self._numbers)}", list(prompt), wanted)  # several threads add: one step, one number
        self._streams[stream.key] = stream
        with self._sending:
            self._sender.send(AddRequest(stream.key, stream.prompt, wanted, time.monotonic(), grammar=grammar))
        return stream

    def abort(self, stream: Stream) -> None:
        with self._sending:
            self._sender.send(AbortRequest(stream.key))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.sock.shutdown(socket.SHUT_RDWR)
        self._channel.close()
        self._sender.close()

    def _read(self) -> None:
        try:
            while True:
                message = self._channel.recv()
                if isinstance(message, CoreState):
                    self.state = message
                elif isinstance(message, Outputs):
                    for output in message.outputs:
                        stream = self._streams[output.key]
                        assert not stream.done.is_set(), "output after the end"
                        stream.tokens += output.token_ids
                        stream.logprobs += [each.logprob for each in output.logprobs]
                        stream.prompt_logprobs += [each.logprob for each in unpack_logprobs(output.prompt_logprobs)]
                        stream.times += [time.monotonic()] * len(output.token_ids)
                        stream.first_token_at = output.first_token_at or stream.first_token_at
                        stream.cached_tokens, stream.preemptions = output.cached_tokens, output.preemptions
                        stream.finish_reason, stream.error = output.finish_reason, output.error
                        stream.error_code = output.error_code if output.error else ""
                        if output.finish_reason or output.error:
                            stream.done.set()
        except (ChannelClosed, OSError):
            self.lost.set()


class Engine:
    """Core and resident; `restart` is what the launcher would do."""

    def __init__(self, options: EngineOptions, resident_module: str = FAKE_RESIDENT, **environment: str) -> None:
        assert options.run_dir is not None
        self.options = options
        self.run_dir = options.run_dir
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | environment
        self._modules = {"resident": resident_module, "core": "semipd_engine.core"}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: list[ApiClient] = []
        for name in self._modules:
            self.restart(name)

    def restart(self, name: str) -> None:
        command = [sys.executable, "-m", self._modules[name], *self.options.arguments()]
        self.processes[name] = subprocess.Popen(command, env=self._environment)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def kill_worker(self, phase: Phase) -> int:
        """Its pid. It may be dead already, which core may not know yet: who counts kills asks the step log. One that
        was never spawned is waited for: its pid of 0 would mean our own process group."""
        pid = wait_until(lambda: self.worker(phase).pid, describe=f"a {phase} worker")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    def worker(self, phase: Phase) -> WorkerReport:
        return next(w for w in self.snapshot().workers if w.phase is phase)

    def control(self, request: Any) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(str(self.run_dir / "control.sock"))
            sock.sendall(request.model_dump_json().encode() + b"\n")
            return CONTROL_REPLY.validate_json(sock.makefile("rb").readline())

    def snapshot(self, since: int = 0) -> EngineSnapshot:
        reply = self.control(GetSnapshot(since=since))
        assert isinstance(reply, EngineSnapshot)
        return reply

    def observation(self, since: int = 0) -> Observation:
        seen = self.snapshot(since).observation
        assert seen is not None
        return seen

    def wait_state(self, state: EngineState = EngineState.READY, seconds: float = PATIENCE_S) -> EngineSnapshot:
        def reached() -> EngineSnapshot | None:
            try:
                snapshot = self.snapshot()
            except OSError:
                return None
            return snapshot if snapshot.state is state else None

        snapshot: EngineSnapshot = wait_until(reached, seconds, f"state {state}")
        return snapshot

    def wait_idle(self) -> BlockCounts:
        """Until nothing runs and every block has come back: a plan that was made ahead may hold some yet when the last
        answer is out."""

        def idle() -> BlockCounts | None:
            snapshot = self.snapshot()
            counts = snapshot.blocks
            busy = snapshot.waiting + snapshot.prefilling + snapshot.decoding
            return counts if not busy and counts.used == counts.quarantined == 0 else None

        counts: BlockCounts = wait_until(idle, describe=lambda: f"an idle pool: {self.snapshot().blocks}")
        assert counts.free + counts.cached == counts.total
        return counts

    def client(self) -> ApiClient:
        self._clients.append(ApiClient(self.run_dir))
        return self._clients[-1]

    def records(self, event: str = "") -> list[dict[str, Any]]:
        """Records of the step log, of one kind or all; the last line may be half written."""
        assert self.options.step_log is not None
        lines = self.options.step_log.read_text().splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [r for r in records if event in ("", r["event"])]

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        for name in ("core", "resident"):
            process = self.processes[name]
            process.send_signal(signal.SIGCONT)
            stop(process, patience_s=15)


def engine_for(
    tmp_path: Path,
    environment: dict[str, str] | None = None,
    state: EngineState = EngineState.READY,
    **options: Any,
) -> Iterator[Engine]:
    """Body of a fixture: an engine on the fake model, in that state."""
    (tmp_path / "model").mkdir(exist_ok=True)
    given: dict[str, Any] = {"max_model_len": 400, "kv_cache_memory": 1 << 16, "prefill_chunk_tokens": 64}
    engine = Engine(
        EngineOptions(
            model=tmp_path / "model", run_dir=tmp_path, step_log=tmp_path / "steps.jsonl", **(given | options)
        ),
        **(environment or {}),
    )
    try:
        engine.wait_state(state)
        yield engine
    finally:
        engine.stop()
