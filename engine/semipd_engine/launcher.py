"""Parent of api, core and resident: starts them, restarts each by itself, and takes them down in the right order.

Torch-free. It holds no request and no socket; what it knows of readiness it asks core, as the agent does.

SIGTERM: core and api are told; /ready fails at once, api admits for 5 s more and drains; when it is gone core stops the
workers and ends; the resident goes last. SIGINT, or a second SIGTERM, takes everything down at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from setproctitle import setproctitle

from semipd_engine.contract import (
    CONTROL_REPLY,
    CONTROL_SOCKET,
    END_API,
    EngineOptions,
    EngineSnapshot,
    EngineState,
    GetSnapshot,
)
from semipd_engine.process import REFUSED, TRY_LATER, die_with_parent

POLL_SECONDS = 0.05
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 30.0
HEALTHY_SECONDS = 10.0
"""A child that lived this long is restarted at once; one that did not, after a growing pause. So is one that says that
it could do nothing (`TRY_LATER`), however long it took to find that out."""
FIRST_LATER_SECONDS = 1.0
CORE_STOP_SECONDS = 20.0
"""A worker has 5 s to end, then MPS some 9 s to end its client, before core kills it."""
API_MARGIN_SECONDS = 15.0
"""Beyond --drain-seconds: the 5 s of further admission, the last flush, and a busy machine."""
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_DYNAMIC": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}
"""Of the resident and so of its workers: OpenMP reads it when torch is imported. One thread until the fork; no spinning
on cores that the other phase could use; and never fewer threads than asked for, since a team of kernels counts on all
of them."""

IN_USE = "another engine runs in --run-dir {}: wait for its end, or give each engine a directory of its own"

log = logging.getLogger(__name__)


@dataclass
class Child:
    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    backoff: float = 0.0
    last_exit: int | None = None

    def tick(self, now: float) -> None:
        """Start it if it is due; note it if it has ended."""
        if self.process is None:
            if now >= self.start_at:
                self._start(now)
        elif (code := self.process.poll()) is not None:
            self.process, self.last_exit = None, code
            if code == TRY_LATER:
                self.backoff = max(self.backoff, FIRST_LATER_SECONDS)
            elif now - self.started_at > HEALTHY_SECONDS:
                self.backoff = 0.0
            self.start_at = now + self.backoff
            log.error("%s ended with %d; it is started again in %.1f s", self.name, code, self.backoff)
            self.backoff = min(LONGEST_BACKOFF_SECONDS, max(FIRST_BACKOFF_SECONDS, self.backoff * 2))

    def _start(self, now: float) -> None:
        parent = os.getpid()
        self.started_at = now
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            env=os.environ | self.environment,
            start_new_session=True,  # Ctrl-C reaches the launcher alone
            preexec_fn=lambda: die_with_parent(parent),  # the launcher has one thread
        )

    def signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def wait(self, seconds: float, hurry: list[int]) -> None:
        """Until it has ended; killed after `seconds`, or as soon as somebody is in a `hurry`."""
        deadline = time.monotonic() + seconds
        while self.process is not None and self.process.poll() is None:
            if time.monotonic() > deadline or len(hurry) > 1:
                self.process.kill()
                self.process.wait()
            time.sleep(POLL_SECONDS)
        self.process = None


def default_commands(options: EngineOptions) -> dict[str, Sequence[str]]:
    """Command line of each child."""
    modules = {
        "resident": "semipd_engine.resident",
        "core": "semipd_engine.core",
        "api": "semipd_engine.server",
    }
    return {name: [sys.executable, "-m", module, *options.arguments()] for name, module in modules.items()}


class Launcher:
    def __init__(self, options: EngineOptions, commands: dict[str, Sequence[str]], by_hand: bool = False) -> None:
        """`options.run_dir` is set, and the commands carry it. `by_hand`: a person waits, and no agent shows what is
        wrong: a model that cannot be loaded ends the engine, unless it was served before."""
        assert options.run_dir is not None
        self._options = options
        self._by_hand = by_hand
        self.announced = False
        """The engine answered once, and people were told where."""
        self._run_dir = options.run_dir
        self._children = {
            name: Child(name, command, WORKER_ENVIRONMENT if name == "resident" else {})
            for name, command in commands.items()
        }
        self._port_file = self._run_dir / "api.port"
        self._port_kept = False
        self._signals: list[int] = []
        self._api_hangs = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(END_API, lambda *_: self.end_api())
        while not self._signals:
            problem = self.turn(time.monotonic())
            if problem:
                if self._by_hand and not self.announced:
                    self._on_signal(signal.SIGINT, None)  # nobody was served: no drain
                self.stop()
                print(problem, file=sys.stderr, flush=True)  # the last line: the agent shows it
                return REFUSED
            time.sleep(POLL_SECONDS)
        self.stop()
        return 0

    def turn(self, now: float) -> str | None:
        """Start what is due and note what has ended. Returns why the engine can never serve, if that has shown."""
        self._keep_port()
        if self._api_hangs:
            self._api_hangs = False
            self._children["api"].signal(signal.SIGKILL)
        for child in self._children.values():
            child.tick(now)
        self.announced = self.announced or self._announce()
        return self._failure() or self._refusal()

    def _failure(self) -> str | None:
        """Why the resident has no model for the person who waits for it."""
        if not self._by_hand or self.announced:
            return None
        snapshot = read_snapshot(self._run_dir)
        if snapshot is None or snapshot.state is not EngineState.FAILED:
            return None
        return f"the model cannot be served: {snapshot.reason}: {snapshot.message}"

    def _refusal(self) -> str | None:
        """What the api finds wrong with the model's files, once the resident has not: it would be started for ever.

        Whatever ends an api after one has served may pass (a folder that is being replaced): it is started again.
        """
        api = self._children["api"]
        if api.process is not None or api.last_exit != REFUSED or self._port_file.exists():
            return None
        snapshot = read_snapshot(self._run_dir)
        if snapshot is None or snapshot.state in (EngineState.STARTING, EngineState.LOADING, EngineState.FAILED):
            return None  # a failure of the resident has a reason of its own, and may pass
        from semipd_engine.hub.check import refusal  # a tokenizer's library is loaded in this one case only

        return refusal(self._options.model) or "the api refuses to start, see above"

    def _keep_port(self) -> None:
        """Once the api has taken a free port, the next api takes the same: clients keep their URL."""
        api = self._children["api"]
        if self._options.port == 0 and not self._port_kept and self._port_file.exists():
            api.command = [*api.command, "--port", self._port_file.read_text().strip()]
            self._port_kept = True

    def end_api(self) -> None:
        """Whoever probes the api finds that it hangs: the next turn kills it, and starts another."""
        self._api_hangs = True

    def _on_signal(self, number: int, _: object) -> None:
        self._signals.append(number)
        if number == signal.SIGINT:
            self._signals.append(number)  # Ctrl-C wants out: no drain

    def stop(self) -> None:
        """Take everything down, in the order of the module's header."""
        api, core, resident = (self._children[name] for name in ("api", "core", "resident"))
        core.signal(signal.SIGTERM)
        api.signal(signal.SIGTERM)
        api.wait(self._options.drain_seconds + API_MARGIN_SECONDS, self._signals)
        core.wait(CORE_STOP_SECONDS, self._signals)
        resident.signal(signal.SIGTERM)
        resident.wait(CORE_STOP_SECONDS, self._signals)

    def _announce(self) -> bool:
        """One line for people when the engine answers."""
        snapshot = read_snapshot(self._run_dir)
        if snapshot is None or snapshot.state is not EngineState.READY or not self._port_file.exists():
            return False
        host = self._options.host if ":" not in self._options.host else f"[{self._options.host}]"
        name = snapshot.model.name if snapshot.model is not None else ""
        print(f"semipd-engine: {name} is ready at http://{host}:{self._port_file.read_text().strip()}", flush=True)
        return True


def read_snapshot(run_dir: Path, timeout: float = 1.0) -> EngineSnapshot | None:
    """Core's state, or None while nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(str(run_dir / CONTROL_SOCKET))
            sock.sendall(json.dumps(GetSnapshot(since=1 << 62).model_dump()).encode() + b"\n")
            line = sock.makefile("rb").readline()
    except OSError:
        return None
    reply = CONTROL_REPLY.validate_json(line) if line else None
    return reply if isinstance(reply, EngineSnapshot) else None


def serve(options: EngineOptions) -> int:
    """``semipd-engine serve``: run until a signal. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s launcher: %(message)s", stream=sys.stderr)
    setproctitle("semipd: launcher")
    own_dir = options.run_dir is None
    run_dir = options.run_dir or Path(tempfile.mkdtemp(prefix="semipd-"))
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    run_dir = run_dir.absolute()
    run_dir.chmod(0o700)
    holder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # until this process ends, however it does
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # its sockets would be taken for ours
        print(f"semipd-engine serve: {IN_USE.format(run_dir)}", file=sys.stderr)
        return TRY_LATER
    (run_dir / "api.port").unlink(missing_ok=True)
    placed = options.model_copy(update={"run_dir": run_dir})
    try:
        return Launcher(placed, default_commands(placed), by_hand=own_dir).run()
    finally:
        if own_dir:
            shutil.rmtree(run_dir, ignore_errors=True)
