"""The parts of the smoke run. Each fills in its figures as it goes and raises where its claim does not hold."""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tests.engine import proc
from tests.engine.harness import Engine, Stream
from tests.engine.model_driver import random_prompt
from tests.gpu.smoke import engine as engines
from tests.gpu.smoke.engine import Traffic, engine, put, settled
from tests.gpu.smoke.report import Outcome, Record, Skip
from tests.gpu.smoke.rungs import Rungs

from e2e.lib.reference import Reference
from e2e.lib.waiting import wait_until
from semipd_agent.doctor.checks import examine
from semipd_agent.doctor.machine import this_machine
from semipd_agent.partitioner.mps.preflight import default_base
from semipd_engine.contract import Device, DType, WorkerState
from semipd_engine.hub.make_model import make_model
from semipd_engine.model.device import set_precision

Figures = dict[str, Any]
MIB = 1 << 20
LENGTHS = (1, 15, 16, 17, 33, 64, 100, 200)
TOKENS = 48
LARGE = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
"""config.json of an 8 B model."""
DRY = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 32}
DRY |= {"num_attention_heads": 8, "num_key_value_heads": 2}


class Smoke:
    def __init__(self, device: str, folder: Path, records: Path, mps_probe: Path | None, smollm2: Path | None) -> None:
        """`folder`: for models, sockets and logs; short. `records`: of the parts before this one. `mps_probe`: on the
        CPU, the stand-in with which rungs are measured."""
        self.device = torch.device(device, *([0] if device == "cuda" else []))
        self._folder, self._records, self._mps_probe, self._smollm2 = folder, records, mps_probe, smollm2
        self._rungs: Rungs | None = None

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"

    def run(self, part: str, figures: Figures) -> None:
        family, _, name = part.partition("-")
        match family:
            case "machine":
                self.machine(figures)
            case "mps":
                self.mps(figures)
            case "memory":
                self.memory(figures)
            case "rungs":
                self.rates(figures)
            case "exact":
                self.exact(self._model(name), figures)
            case "switches":
                self.switches(figures)
            case "large":
                self.large(figures)
            case "kills":
                self.kills(figures)
            case _:
                raise ValueError(f"no part {part}")

    def close(self) -> None:
        if self._rungs is not None:
            self._rungs.stop()

    @property
    def _split(self) -> tuple[int, int]:
        """Four workers, or in a dry run two: each takes seconds to start."""
        return (100, 100) if self.dry else (60, 40)

    @property
    def _moves(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """A first split below 100/100, and one whose rungs nobody has held; in a dry run prefill's alone."""
        return ((60, 100), (40, 100)) if self.dry else ((60, 40), (40, 80))

    @property
    def rungs(self) -> Rungs:
        """As the part `mps` found them, with a daemon for this part alone: what one part does to it harms no other."""
        if self._rungs is None:
            found = Record.read(self._records / "mps.json")
            if found is None or found.outcome is not Outcome.OK:
                why = found.problem if found is not None else "the part `mps` did not run"
                self._rungs = Rungs(why_not=why or "the part `mps` did not end well")
            else:
                self._rungs = Rungs.start(self._mps_probe, known=found.figures["rungs"])
                if self._rungs.why_not:
                    raise RuntimeError(f"MPS served the part `mps`, and now: {self._rungs.why_not}")
        return self._rungs

    def _model(self, name: str) -> Path:
        if name == "smollm2":
            assert self._smollm2 is not None
            return self._smollm2
        folder = self._folder / "model" / name
        make_model("tiny", name, folder, progress=False)
        return folder

    def _engine(self, model: Path, dtype: DType, **options: Any) -> AbstractContextManager[Engine]:
        run = self._folder / "run"
        return engine(model, run, self.device, dtype, under_mps=bool(self.rungs.counts), **options)

    # ---- the machine ------------------------------------------------------------------------------------------------

    def machine(self, figures: Figures) -> None:
        figures["Python"] = platform.python_version()
        figures["torch"] = f"{torch.__version__} (CUDA {torch.version.cuda})"
        rows = examine(this_machine(default_base()), Device(self.device.type))
        figures["doctor"] = [asdict(row) for row in rows]
        if not self.dry:
            found = torch.cuda.get_device_properties(self.device)
            figures["GPU"] = f"{found.name}, {found.multi_processor_count} SMs, {found.total_memory / MIB:.0f} MiB"

    def mps(self, figures: Figures) -> None:
        if self.dry and self._mps_probe is None:
            raise Skip("a dry run on the CPU")
        self._rungs = rungs = Rungs.start(self._mps_probe)
        if rungs.why_not:
            figures["so"] = "the other parts run with a worker for each rung, and no limit"
            raise Skip(rungs.why_not)
        figures["daemon and server, seconds to ACTIVE"] = round(rungs.seconds, 2)
        figures["a limit shows only with a context"] = rungs.with_context
        figures["rungs"] = {"total": rungs.total, "counts": dict(rungs.counts)}
        assert rungs.server_status() == "ACTIVE"

    def memory(self, figures: Figures) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=85)
        figures["pytest"] = done.stdout.strip().splitlines()[-1:]
        if done.returncode != 0:
            raise RuntimeError(f"{done.stdout[-1500:]} {done.stderr[-500:]}")

    def rates(self, figures: Figures) -> None:
        """Each rung by itself: nobody else is on the device."""
        percents = (20, 100) if self.dry else (20, 40, 60, 80, 100)
        table: list[dict[str, Any]] = []
        figures["matrix products of one client"] = table
        for percent in percents:
            command = [sys.executable, "-m", "tests.gpu.smoke.gemm", self.device.type]
            environment = os.environ | self.rungs.environment(percent)
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=60 * engines.patience
            )
            if done.returncode != 0:
                raise RuntimeError(f"on {percent} %: {done.stderr[-500:]}")
            seen = json.loads(done.stdout.splitlines()[-1])
            row = {"percent": percent, "SMs by probe": self.rungs.counts.get(percent), "SMs in torch": seen["sm_count"]}
            table.append(row | {"TFLOP/s": round(seen["tflops"], 3), "wrong": seen["wrong"]})
        wrong = [f"{row['percent']} %: {row['wrong']}" for row in table if row["wrong"]]
        assert not wrong, f"wrong products: {wrong}"
        if self.rungs.counts:
            differ = [row for row in table if row["SMs by probe"] != row["SMs in torch"]]
            assert not differ, f"probe and torch disagree: {differ}"
        if self.rungs.counts and not self.dry:
            rates = [row["TFLOP/s"] for row in table]
            slower = [b for a, b in itertools.pairwise(rates) if b < 0.95 * a]
            assert not slower, f"a larger rung is slower: {rates}"

    # ---- the engine -------------------------------------------------------------------------------------------------

    def exact(self, model: Path, figures: Figures) -> None:
        with self._same_tokens(model, figures):
            pass

    @contextmanager
    def _same_tokens(self, model: Path, figures: Figures) -> Iterator[tuple[Engine, dict[tuple[int, ...], list[int]]]]:
        """An engine that has answered as transformers does, and the answers by prompt."""
        expected = self._expected(model)
        with self._engine(model, DType.FLOAT32, prefill_chunk_tokens=32) as running:
            put(running, self.rungs.plan(*self._split))
            figures["workers"] = [
                {"phase": w.phase, "percent": w.percent, "SMs": w.sm_count, "pid": w.pid} for w in settled(running)
            ]
            client = running.client()
            figures["tokens compared"] = compare([client.add(list(p), TOKENS) for p in expected], expected)
            yield running, expected

    def _expected(self, model: Path) -> dict[tuple[int, ...], list[int]]:
        set_precision(torch.float32)
        reference = Reference(model, self.device)
        prompts = [random_prompt(length, 4096, seed=length) for length in LENGTHS]
        return {tuple(prompt): reference.greedy(prompt, TOKENS)[0] for prompt in prompts}

    def kills(self, figures: Figures) -> None:
        table: list[Figures] = []
        with self._same_tokens(self._model("qwen2"), figures) as (running, expected):
            figures["after each end"] = table
            client = running.client()
            workers = settled(running)
            ends = [("kill -9", worker) for worker in (workers[:1] if self.dry else workers)]
            if self.rungs.counts:  # the last word: the one that the agent uses
                ends.append(("terminate_client", next(w for w in workers if w.routed)))
            for how, victim in ends:
                pid = next(w.pid for w in settled(running) if (w.phase, w.percent) == (victim.phase, victim.percent))
                streams = [client.add(list(prompt), TOKENS) for prompt in expected]
                wait_until(
                    lambda streams=streams: any(stream.tokens for stream in streams),
                    60 * engines.patience,
                    "running streams",
                )
                row: Figures = {"end": how, "of": f"{victim.phase} {victim.percent} %"}
                table.append(row)
                began = time.monotonic()
                if how == "kill -9":
                    os.kill(pid, 9)
                else:
                    row["MPS server then"] = self.rungs.terminate(pid)
                row["tokens equal"] = compare(streams, expected)
                wait_until(
                    lambda pid=pid: pid not in [w.pid for w in running.snapshot().workers],
                    30 * engines.patience,
                    "its death",
                )
                settled(running)
                row["seconds to full strength"] = round(time.monotonic() - began, 2)
                row["MPS server"] = self.rungs.server_status()

    def switches(self, figures: Figures) -> None:
        """Two workers, then four: each costs its context and workspaces, and no second copy of the weights."""
        model = self._folder / "small"
        make_model("tiny" if self.dry else "small", "llama", model, progress=False)
        table: list[Figures] = []
        figures["memory taken, MiB"] = table

        def note(when: str, running: Engine | None) -> float:
            taken = self._taken(running) / MIB
            before = table[-1]["taken"] if table else round(taken)
            table.append({"when": when, "taken": round(taken), "more": round(taken - before)})
            return taken

        note("before", None)
        with self._engine(model, DType.AUTO) as running:
            info = running.snapshot().model
            assert info is not None
            figures["weights, MiB"], figures["KV pool, MiB"] = info.weight_bytes // MIB, info.kv_bytes // MIB
            alone = note("resident", running)
            began = time.monotonic()
            put(running, self.rungs.plan(100, 100))
            figures["seconds to two workers, side by side"] = round(time.monotonic() - began, 2)
            two = note("two workers (100/100)", running)
            first, _ = self._moves
            figures["seconds to a cold partition"] = round(put(running, self.rungs.plan(*first)), 2)
            note("its workers beside those ({}/{})".format(*first), running)
            each = (two - alone) / 2
            figures["a worker, MiB"] = round(each)
            if not self.dry:
                weights = info.weight_bytes / MIB
                assert each < max(weights, 900), f"a worker takes {each:.0f} MiB, the weights {weights:.0f}"
            self._switch(running, figures)

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
        window = 1.0 if self.dry else 6.0
        first, cold = self._moves
        table: list[Figures] = []
        figures["switches under load"] = table
        traffic = Traffic(running, streams=2 if self.dry else 8, tokens=2000, prompt_tokens=512, every=1.0)
        try:
            wait_until(
                lambda: sum(bool(s.tokens) for s in traffic.decoding) >= 2, 60 * engines.patience, "running streams"
            )
            for what, to in (("no switch", first), ("cold", cold), ("warm", (100, 100))):
                split = to if to != first else None
                began = time.monotonic()
                prepared = put(running, self.rungs.plan(*split)) if split else 0.0
                time.sleep(window)
                row = {"switch": "{}: {}/{}".format(what, *to), "seconds to effect": round(prepared, 3)}
                table.append(row | traffic.gaps(began, time.monotonic()))
        finally:
            wrong = traffic.stop()
        assert not wrong, wrong
        assert running.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}

    def large(self, figures: Figures) -> None:
        """A config.json is all there is of the model; the resident makes its weights on the device."""
        model = self._folder / "large"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(LARGE | (DRY if self.dry else {})))
        before = self._taken(None)
        began = time.monotonic()
        kv_bytes = (64 if self.dry else 4096) * MIB
        options: dict[str, Any] = {"load_format": "dummy", "kv_cache_memory": kv_bytes, "prefill_chunk_tokens": 2048}
        with self._engine(model, DType.AUTO, **options) as running:
            info = running.snapshot().model
            assert info is not None
            figures["seconds to the weights"] = round(time.monotonic() - began, 2)
            figures["weights, MiB"] = info.weight_bytes // MIB
            figures["seconds to the workers"] = round(put(running, self.rungs.plan(*self._split)), 2)
            figures["memory taken by all, MiB"] = round((self._taken(running) - before) / MIB)
            client = running.client()
            table: list[Figures] = []
            figures["prompts and streams"] = table
            for prompt_tokens, streams, tokens in ((128, 1, 16), (3800, 1, 2), (128, 1, 64), (128, 16, 64)):
                began = time.monotonic()
                added = [
                    client.add(random_prompt(prompt_tokens, 4000, seed=i + streams), tokens) for i in range(streams)
                ]
                done = [stream.wait(60 * engines.patience) for stream in added]
                assert not any(stream.error for stream in done), [stream.error for stream in done]
                last, first = max(s.times[-1] for s in done), max(s.times[0] for s in done)
                table.append(
                    {
                        "streams": streams,
                        "prompt tokens": prompt_tokens,
                        "ms to the first token": round((first - began) * 1000, 1),
                        "ms of a decode step": round((last - first) * 1000 / (tokens - 1), 2),
                    }
                )


def wait(condition: Callable[[], object], seconds: float, what: str) -> None:
    wait_until(condition, seconds * engines.patience, what)


def compare(streams: list[Stream], expected: dict[tuple[int, ...], list[int]]) -> int:
    """Tokens that were compared. Raises AssertionError with the first difference."""
    count = 0
    for stream in streams:
        wanted = expected[tuple(stream.prompt)]
        tokens = stream.wait(90 * engines.patience).tokens
        assert stream.error is None, stream.error
        if tokens != wanted:
            at = next(
                (i for i, pair in enumerate(zip(tokens, wanted, strict=False)) if pair[0] != pair[1]), len(tokens)
            )
            raise AssertionError(f"a prompt of {len(stream.prompt)} tokens differs from transformers at token {at}")
        count += len(tokens)
    return count
