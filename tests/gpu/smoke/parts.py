"""The parts of the smoke run. Each fills in its figures as it goes and raises where its claim does not hold."""

from __future__ import annotations

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tests.engine import proc
from tests.engine.harness import Engine, Stream, wait_for
from tests.engine.model_driver import random_prompt
from tests.gpu.smoke.engine import Traffic, engine, put, settled
from tests.gpu.smoke.report import Skip
from tests.gpu.smoke.rungs import Rungs

from e2e.lib.reference import Reference
from semipd_agent.doctor.checks import examine
from semipd_agent.doctor.machine import this_machine
from semipd_agent.partitioner.mps.preflight import default_base
from semipd_engine.contract import Device, DType, WorkerState
from semipd_engine.model.device import set_precision

Figures = dict[str, Any]
MIB = 1 << 20
LENGTHS = (1, 15, 16, 17, 33, 64, 100, 200)
TOKENS = 48


@dataclass
class Smoke:
    device: torch.device
    rungs: Rungs
    folder: Path
    """For sockets and logs of the engines; short."""

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"

    def machine(self, figures: Figures) -> None:
        figures["Python"], figures["torch"] = (
            platform.python_version(),
            f"{torch.__version__} (CUDA {torch.version.cuda})",
        )
        rows = examine(this_machine(default_base()), Device(self.device.type))
        figures["doctor"] = [asdict(row) for row in rows]
        if not self.dry:
            found = torch.cuda.get_device_properties(self.device)
            figures["GPU"] = f"{found.name}, {found.multi_processor_count} SMs, {found.total_memory / MIB:.0f} MiB"

    def mps(self, figures: Figures) -> None:
        if self.rungs.why_not:
            figures["so"] = "the other parts run with a worker for each rung, and no limit"
            raise Skip(self.rungs.why_not)
        figures["daemon and server, seconds to ACTIVE"] = round(self.rungs.seconds, 2)
        figures["SMs of the GPU"] = self.rungs.total

    def rates(self, figures: Figures) -> None:
        """Each rung by itself: nobody else is on the device."""
        percents = (20, 100) if self.dry else (20, 40, 60, 80, 100)
        table: list[dict[str, Any]] = []
        figures["matrix products of one client"] = table
        for percent in percents:
            command = [sys.executable, "-m", "tests.gpu.smoke.gemm", self.device.type]
            environment = os.environ | self.rungs.environment(percent)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            if done.returncode != 0:
                raise RuntimeError(f"on {percent} %: {done.stderr[-500:]}")
            seen = json.loads(done.stdout.splitlines()[-1])
            table.append(
                {
                    "percent": percent,
                    "SMs by probe": self.rungs.counts.get(percent),
                    "SMs in torch": seen["sm_count"],
                    "TFLOP/s": round(seen["tflops"], 3),
                }
            )
        if self.rungs.counts:
            wrong = [row for row in table if row["SMs by probe"] != row["SMs in torch"]]
            assert not wrong, f"probe and torch disagree: {wrong}"
            rates = [row["TFLOP/s"] for row in table]
            slower = [b for a, b in itertools.pairwise(rates) if b < 0.95 * a]
            assert not slower, f"a larger rung is slower: {rates}"

    def exact(self, model: Path, kill: bool) -> Callable[[Figures], None]:
        def work(figures: Figures) -> None:
            set_precision(torch.float32)
            reference = Reference(model, self.device)
            prompts = [random_prompt(length, 4096, seed=length) for length in LENGTHS]
            expected = {tuple(prompt): reference.greedy(prompt, TOKENS)[0] for prompt in prompts}
            del reference
            with engine(
                model, self.folder / model.name, self.device, DType.FLOAT32, prefill_chunk_tokens=32
            ) as running:
                put(running, self.rungs.plan(60, 40))
                figures["workers"] = [
                    {"phase": w.phase, "percent": w.percent, "SMs": w.sm_count, "pid": w.pid} for w in settled(running)
                ]
                client = running.client()
                streams = [client.add(prompt, TOKENS) for prompt in prompts]
                figures["tokens compared"] = compare(streams, expected)
                if kill:
                    figures["after kill -9"] = table = []
                    self._kill_each(running, expected, table)

        return work

    def _kill_each(self, running: Engine, expected: dict[tuple[int, ...], list[int]], table: list[Figures]) -> None:
        client = running.client()
        for victim in settled(running):
            streams = [client.add(list(prompt), TOKENS) for prompt in expected]
            wait_for(lambda streams=streams: any(stream.tokens for stream in streams), 60, "running streams")
            os.kill(victim.pid, signal.SIGKILL)
            began = time.monotonic()
            row: Figures = {"killed": f"{victim.phase} {victim.percent} %"}
            table.append(row)
            row["tokens equal"] = compare(streams, expected)
            wait_for(lambda pid=victim.pid: pid not in [w.pid for w in running.snapshot().workers], 30, "its death")
            settled(running)
            row["seconds to full strength"] = round(time.monotonic() - began, 2)
            row["MPS server"] = self.rungs.server_status()

    def memory(self, model: Path) -> Callable[[Figures], None]:
        """Two workers, then four: each costs its context and workspaces, and no second copy of the weights."""

        def work(figures: Figures) -> None:
            table: list[Figures] = []
            figures["memory taken, MiB"] = table

            def note(when: str, running: Engine | None) -> float:
                taken = self._taken(running) / MIB
                table.append(
                    {"when": when, "taken": round(taken), "more": round(taken - table[-1]["taken"]) if table else 0}
                )
                return taken

            note("before", None)
            with engine(model, self.folder / model.name, self.device, DType.AUTO) as running:
                info = running.snapshot().model
                assert info is not None
                figures["weights, MiB"], figures["KV pool, MiB"] = info.weight_bytes // MIB, info.kv_bytes // MIB
                alone = note("resident", running)
                began = time.monotonic()
                put(running, self.rungs.plan(100, 100))
                figures["seconds to two workers, side by side"] = round(time.monotonic() - began, 2)
                two = note("two workers (100/100)", running)
                figures["seconds to a cold partition"] = round(put(running, self.rungs.plan(60, 40)), 2)
                note("four workers (60/40)", running)
                each = (two - alone) / 2
                figures["a worker, MiB"] = round(each)
                if not self.dry:
                    weights = info.weight_bytes / MIB
                    assert each < max(weights, 900), f"a worker takes {each:.0f} MiB, the weights {weights:.0f}"
                self._switch(running, figures)

        return work

    def _taken(self, running: Engine | None) -> int:
        """Of the GPU as a whole; on the CPU private memory of the engine's processes."""
        if not self.dry:
            free, total = torch.cuda.mem_get_info(self.device)
            return total - free
        if running is None:
            return 0
        workers = [w.pid for w in running.snapshot().workers if w.state is WorkerState.READY]
        return sum(proc.memory_bytes(pid, "Private_Dirty") for pid in (running.processes["resident"].pid, *workers))

    def _switch(self, running: Engine, figures: Figures) -> None:
        """Streams run and prompts arrive all the while; gaps are between two tokens of one stream."""
        window = 2.0 if self.dry else 6.0
        table: list[Figures] = []
        figures["switches under load"] = table
        traffic = Traffic(running, streams=2 if self.dry else 8, tokens=2000, prompt_tokens=512, every=1.0)
        try:
            wait_for(lambda: sum(bool(s.tokens) for s in traffic.decoding) >= 2, 120, "running streams")
            for what, split in (("no switch (60/40)", None), ("cold: 40/80", (40, 80)), ("warm: 100/100", (100, 100))):
                began = time.monotonic()
                prepared = put(running, self.rungs.plan(*split)) if split else 0.0
                time.sleep(window)
                table.append(
                    {"switch": what, "seconds to effect": round(prepared, 3)} | traffic.gaps(began, time.monotonic())
                )
        finally:
            wrong = traffic.stop()
        assert not wrong, wrong
        assert running.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}


def compare(streams: list[Stream], expected: dict[tuple[int, ...], list[int]]) -> int:
    """Tokens that were compared. Raises AssertionError with the first difference."""
    count = 0
    for stream in streams:
        wanted = expected[tuple(stream.prompt)]
        tokens = stream.wait(120).tokens
        assert stream.error is None, stream.error
        if tokens != wanted:
            at = next(
                (i for i, pair in enumerate(zip(tokens, wanted, strict=False)) if pair[0] != pair[1]), len(tokens)
            )
            raise AssertionError(f"a prompt of {len(stream.prompt)} tokens differs from transformers at token {at}")
        count += len(tokens)
    return count
