"""The engine that is measured: core and resident as they serve, without an api, spoken to as api and agent do."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from semipd_engine.contract import (
    CONTROL_REPLY,
    CONTROL_SOCKET,
    Ack,
    Device,
    Enforcement,
    EngineOptions,
    EngineSnapshot,
    EngineState,
    GetSnapshot,
    PacingMode,
    PartitionPlan,
    Phase,
    PhaseLimit,
    SetPartition,
    Split,
    StepTimes,
    WorkerState,
)
from semipd_engine.cpu_grant import granted
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed
from semipd_engine.ipc.requests import AddRequest, CoreState, CoreToApi, Outputs
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.launcher import WORKER_ENVIRONMENT, default_commands
from semipd_engine.process import die_with_parent
from semipd_engine.profiler.sweep import Limits

PIPE, PERCENTAGE = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
PAUSE = 0.05
ANSWER_SECONDS = 30.0
PARTITION_SECONDS = 300.0
"""For a rung that has to start a worker, warm it up and prove it."""
STOP_SECONDS = 15.0
VOCABULARY = range(300, 1000)
"""Ids of the prompts' tokens: in every vocabulary, and none of those that end something."""


class EngineFailed(Exception):
    """The engine did not start, ended, or refused a split; in its own words."""


@dataclass
class _Answer:
    left: int
    begun: bool = False


class Processes:
    """`sweep.Engine` in the real."""

    def __init__(self, options: EngineOptions, children: dict[str, subprocess.Popen[bytes]]) -> None:
        assert options.run_dir is not None
        self._run_dir, self._children = options.run_dir, children
        self._epochs, self._keys = itertools.count(1), itertools.count()
        self._rng = random.Random(0)
        self._answers: dict[str, _Answer] = {}
        self._channel: BlockingChannel[CoreToApi] | None = None
        self.grant = granted(socket.gethostname())

    def start(self) -> EngineSnapshot:
        """Until the model is there and a worker of each phase is ready."""
        asked = False
        while True:
            snapshot = self._snapshot()
            if snapshot is not None and snapshot.state is EngineState.FAILED:
                raise EngineFailed(f"{snapshot.reason}: {snapshot.message}")
            if snapshot is not None and snapshot.model is not None:
                if not asked:
                    self._set(Split(), snapshot)
                    asked = True
                elif snapshot.state is EngineState.READY:
                    self._connect()
                    return snapshot
            self._look()
            time.sleep(PAUSE)

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self._run_dir / "core.sock"))
        self._channel = BlockingChannel(sock, CoreToApi)

    def limits(self, snapshot: EngineSnapshot) -> Limits:
        seen, model = snapshot.observation, snapshot.model
        if seen is None or model is None:
            raise EngineFailed("it tells neither its model nor its limits")
        return Limits(model.max_model_len, seen.max_num_seqs, seen.prefill_chunk_tokens, seen.kv_tokens)

    # ---- what a sweep asks for --------------------------------------------------------------------------------------

    def partition(self, split: Split) -> None:
        snapshot = self.snapshot()
        if snapshot.split == split:
            return
        epoch = self._set(split, snapshot)
        until = time.monotonic() + PARTITION_SECONDS
        while True:
            snapshot = self.snapshot()
            if snapshot.refused is not None and snapshot.refused.split_epoch == epoch:
                raise EngineFailed(f"split {split}: {snapshot.refused.reason}: {snapshot.refused.message}")
            routed = [w for w in snapshot.workers if w.routed and w.state is WorkerState.READY]
            if snapshot.split_epoch == epoch and {w.phase for w in routed if w.applied_epoch == epoch} == set(Phase):
                return
            if time.monotonic() > until:
                raise EngineFailed(f"split {split} is not in force after {PARTITION_SECONDS:.0f} s")
            time.sleep(PAUSE)

    def add(self, prompt: int, answer: int) -> None:
        assert self._channel is not None
        key = f"p{next(self._keys)}"
        self._answers[key] = _Answer(answer)
        tokens = self._rng.choices(VOCABULARY, k=prompt)
        wanted = Sampling(temperature=0, max_tokens=answer)
        self._channel.send(AddRequest(key, tokens, wanted, time.monotonic()))

    def decoding(self) -> int:
        return sum(answer.begun for answer in self._answers.values())

    def unfinished(self) -> int:
        return len(self._answers)

    def steps(self) -> Sequence[StepTimes]:
        seen = self.snapshot().observation
        return seen.steps if seen is not None else ()

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Takes in meanwhile what core sends."""
        assert self._channel is not None
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                message = self._channel.recv(timeout=left)
            except (ChannelClosed, OSError) as error:
                self._look()
                raise EngineFailed("core is gone") from error
            if isinstance(message, Outputs):
                self._take(message)
            elif isinstance(message, CoreState) and message.state == EngineState.FAILED:
                raise EngineFailed(message.message)

    def _take(self, message: Outputs) -> None:
        for output in message.outputs:
            if output.error is not None:
                raise EngineFailed(output.error)
            answer = self._answers[output.key]
            answer.begun = answer.begun or bool(output.token_ids)
            if output.finish_reason is not None:
                del self._answers[output.key]

    # ---- sockets ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> EngineSnapshot:
        snapshot = self._snapshot()
        if snapshot is None:
            self._look()
            raise EngineFailed("core does not answer")
        return snapshot

    def _snapshot(self) -> EngineSnapshot | None:
        try:
            reply = self._ask(GetSnapshot(since=1 << 62))
        except (OSError, ValueError):
            return None
        return reply if isinstance(reply, EngineSnapshot) else None

    def _set(self, split: Split, snapshot: EngineSnapshot) -> int:
        epoch = max(next(self._epochs), snapshot.split_epoch + 1)
        on_gpu = snapshot.model is not None and snapshot.model.device != Device.CPU
        reply = self._ask(
            SetPartition(split_epoch=epoch, plan=gpu_plan(split) if on_gpu else cpu_plan(split, self.grant.cpus))
        )
        if not isinstance(reply, Ack):
            raise EngineFailed(f"split {split}: {reply}")
        return epoch

    def _ask(self, request: SetPartition | GetSnapshot) -> object:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(str(self._run_dir / CONTROL_SOCKET))
            sock.sendall(request.model_dump_json().encode() + b"\n")
            with sock.makefile("rb") as lines:
                return CONTROL_REPLY.validate_json(lines.readline())

    def _look(self) -> None:
        for name, child in self._children.items():
            if (code := child.poll()) is not None:
                raise EngineFailed(f"{name} ended with status {code}; its last words are above")

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


def gpu_plan(split: Split) -> PartitionPlan:
    """Rungs of the MPS daemon that the environment names. Without one there is the whole device only."""
    pipe = os.environ.get(PIPE, "")

    def limit(percent: int) -> PhaseLimit:
        return PhaseLimit(percent=percent, environment={PIPE: pipe, PERCENTAGE: str(percent)} if pipe else {})

    return PartitionPlan(
        split=split,
        enforcement=Enforcement.SPATIAL_CAP if pipe else Enforcement.NONE,
        mode=PacingMode.RUNGS,
        prefill=limit(split.prefill),
        decode=limit(split.decode),
        whole=limit(100),
    )


def shares_hold(device: str) -> bool:
    """Does anything stand behind a split on this machine?"""
    return device == Device.CPU or bool(os.environ.get(PIPE))


@contextmanager
def running(options: EngineOptions) -> Iterator[Processes]:
    """Its processes; they end with the block, and with this process."""
    commands, parent = default_commands(options), os.getpid()
    children: dict[str, subprocess.Popen[bytes]] = {}
    engine = Processes(options, children)
    try:
        for name in ("resident", "core"):
            children[name] = subprocess.Popen(
                commands[name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | (WORKER_ENVIRONMENT if name == "resident" else {}),
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends them in their order
                preexec_fn=lambda: die_with_parent(parent),
            )
        yield engine
    finally:
        engine.close()
        for name in ("core", "resident"):
            if name in children:
                _stop(children[name])


def _stop(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
