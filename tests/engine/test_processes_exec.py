"""Workers that are started by exec and attach to the resident's memory, as on a GPU, with the tiny real model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine import proc, rungs
from tests.engine.harness import Engine
from tests.engine.model_driver import random_prompt

from e2e.lib.models import random_model
from e2e.lib.reference import reference
from e2e.lib.waiting import wait_until
from semipd_engine.contract import DType, EngineOptions, EngineState, Phase, SetPartition, WorkerState
from semipd_engine.resident.cuda_environment import NOWHERE

pytestmark = pytest.mark.engine

EXEC_RESIDENT = "tests.engine.exec_resident"
TOKENS = 32
PATIENCE = 240
"""Seconds. Each worker imports torch by itself, which takes a busy machine its time."""


@pytest.fixture(scope="module")
def model() -> Path:
    return random_model("qwen2")


def options(model: Path, run_dir: Path) -> EngineOptions:
    return EngineOptions(
        model=model,
        run_dir=run_dir,
        step_log=run_dir / "steps.jsonl",
        dtype=DType.FLOAT32,
        max_model_len=512,
        kv_cache_memory=64 << 20,
        prefill_chunk_tokens=32,
        await_partition=True,
        prepare_seconds=PATIENCE,
    )


@pytest.fixture
def engine(model: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(options(model, tmp_path), EXEC_RESIDENT, CUDA_MPS_CLIENT_PRIORITY="1", SPT_NOENV="1")
    try:
        engine.wait_state(EngineState.STARTING, seconds=60)
        yield engine
    finally:
        engine.stop()


def environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def unchecked(percent: int) -> rungs.PhaseLimit:
    """No SM count to prove: there are none on a CPU."""
    return rungs.limit(percent).model_copy(update={"sm_count": None})


def ask(engine: Engine, epoch: int, prefill: int, decode: int) -> None:
    plan = rungs.plan_of(unchecked(prefill), unchecked(decode)).model_copy(update={"whole": unchecked(100)})
    engine.control(SetPartition(split_epoch=epoch, plan=plan))


def test_attached_workers_are_exact_and_share_one_copy(engine: Engine, model: Path) -> None:
    ask(engine, 1, 60, 40)
    engine.wait_state(seconds=PATIENCE)
    wait_until(
        lambda: sum(w.state is WorkerState.READY for w in engine.snapshot().workers) == 4, PATIENCE, "four workers"
    )
    resident = engine.processes["resident"].pid
    for worker in engine.snapshot().workers:
        for name in ("semipd-kv", "semipd-weights"):
            assert proc.mapped_inodes(worker.pid, name) == {proc.memfd_inode(resident, name)}
        seen = environment(worker.pid)
        assert seen["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == str(worker.percent)
        assert seen["CUDA_MPS_PIPE_DIRECTORY"] == "/run/spd/1/p" != NOWHERE
        assert "CUDA_MPS_CLIENT_PRIORITY" not in seen  # the resident's own settings are not the rung's
        assert "expandable_segments:False" in seen["PYTORCH_CUDA_ALLOC_CONF"]
        parts = worker.start_seconds
        assert list(parts) == ["launch", "attach", "warm_up", "runner"] and all(value > 0 for value in parts.values())

    client = engine.client()
    prompts = [random_prompt(length, 4096, length) for length in (1, 17, 33, 64, 100)]
    streams = [client.add(prompt, TOKENS) for prompt in prompts]
    wait_until(lambda: all(stream.tokens for stream in streams), describe="running streams")
    os.kill(engine.worker(Phase.DECODE).pid, signal.SIGKILL)
    ask(engine, 2, 60, 80)  # a cold rung beside it
    for stream in streams:
        assert stream.wait(120).tokens == reference(model).greedy(stream.prompt, TOKENS)[0]
    wait_until(lambda: engine.snapshot().split_epoch == 2, PATIENCE, "the cold rung in force")


def test_a_later_rung_is_forked_by_a_process_that_has_its_imports_behind_it(engine: Engine, model: Path) -> None:
    """It is the resident's child all the same, serves exactly, and is replaced when it is killed. Its environment of
    the kernel's is the zygote's, which has no rung; what it sees of its own is `test_zygote`'s and the dry run's."""
    ask(engine, 1, 60, 40)
    engine.wait_state(seconds=PATIENCE)
    for epoch, percent in enumerate((80, 50, 30, 20), start=2):  # the zygote imports meanwhile
        ask(engine, epoch, 60, percent)
        wait_until(lambda epoch=epoch: engine.snapshot().split_epoch == epoch, PATIENCE, "the cold rung in force")
        worker = next(w for w in engine.snapshot().workers if (w.phase, w.percent) == (Phase.DECODE, percent))
        if forked := "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in environment(worker.pid):
            break
    assert forked
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines())
    assert int(status["PPid"]) == engine.processes["resident"].pid
    streams = [engine.client().add(random_prompt(40, 4096, seed), TOKENS) for seed in range(3)]
    wait_until(lambda: all(stream.tokens for stream in streams), describe="running streams")
    os.kill(worker.pid, signal.SIGKILL)
    for stream in streams:
        assert stream.wait(120).tokens == reference(model).greedy(stream.prompt, TOKENS)[0]


def test_a_worker_that_sees_other_weights_never_serves(model: Path, tmp_path: Path) -> None:
    engine = Engine(options(model, tmp_path), EXEC_RESIDENT, SEMIPD_WRONG_CHECKSUM="1")
    try:
        engine.wait_state(EngineState.STARTING, seconds=60)
        ask(engine, 1, 60, 40)
        refused = wait_until(lambda: engine.snapshot().refused, PATIENCE, "a reason")
        assert refused.reason == "WeightsMismatch"
        assert "WeightsMismatch" in engine.wait_state(EngineState.STARTING).message
    finally:
        engine.stop()
