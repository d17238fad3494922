"""Parts of the check that ask the device alone: what is here, MPS, memory of another process, a rung's rate."""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from tests.gpu.check import engine as engines
from tests.gpu.check.report import Skip
from tests.gpu.check.stage import MIB, Figures, Stage

from semipd_agent.doctor.checks import examine
from semipd_agent.doctor.machine import this_machine
from semipd_agent.partitioner.mps.preflight import default_base
from semipd_engine.contract import Device


def machine(stage: Stage, figures: Figures) -> None:
    import torch

    figures["Python"] = platform.python_version()
    figures["torch"] = f"{torch.__version__} (CUDA {torch.version.cuda})"
    rows = examine(this_machine(default_base()), Device(stage.device.type))
    figures["doctor"] = [asdict(row) for row in rows]
    if not stage.dry:
        found = torch.cuda.get_device_properties(stage.device)
        figures["GPU"] = f"{found.name}, {found.multi_processor_count} SMs, {found.total_memory / MIB:.0f} MiB"


def mps(stage: Stage, figures: Figures) -> None:
    if stage.dry and stage.mps_probe is None:
        raise Skip("a dry run on the CPU")
    rungs = stage.start_rungs()
    if rungs.why_not:
        figures["so"] = "the other parts run with a worker for each rung, and no limit"
        raise Skip(rungs.why_not)
    figures["daemon and server, seconds to ACTIVE"] = round(rungs.seconds, 2)
    figures["a limit shows only with a context"] = rungs.with_context
    figures["rungs"] = {"total": rungs.total, "counts": dict(rungs.counts)}
    assert rungs.server_status() == "ACTIVE"


def memory(stage: Stage, figures: Figures) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=85)
    figures["pytest"] = done.stdout.strip().splitlines()[-1:]
    if done.returncode != 0:
        raise RuntimeError(f"{done.stdout[-1500:]} {done.stderr[-500:]}")


def rates(stage: Stage, figures: Figures) -> None:
    """Each rung by itself: nobody else is on the device."""
    percents = (20, 100) if stage.dry else (20, 40, 60, 80, 100)
    table: list[dict[str, Any]] = []
    figures["matrix products of one client"] = table
    for percent in percents:
        command = [sys.executable, "-m", "tests.gpu.check.gemm", stage.device.type]
        environment = os.environ | stage.rungs.environment(percent)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * engines.patience)
        if done.returncode != 0:
            raise RuntimeError(f"on {percent} %: {done.stderr[-500:]}")
        seen = json.loads(done.stdout.splitlines()[-1])
        row = {"percent": percent, "SMs by probe": stage.rungs.counts.get(percent), "SMs in torch": seen["sm_count"]}
        table.append(row | {"TFLOP/s": round(seen["tflops"], 3), "wrong": seen["wrong"]})
    wrong = [f"{row['percent']} %: {row['wrong']}" for row in table if row["wrong"]]
    assert not wrong, f"wrong products: {wrong}"
    if stage.rungs.counts:
        differ = [row for row in table if row["SMs by probe"] != row["SMs in torch"]]
        assert not differ, f"probe and torch disagree: {differ}"
    if stage.rungs.counts and not stage.dry:
        rates = [row["TFLOP/s"] for row in table]
        slower = [b for a, b in itertools.pairwise(rates) if b < 0.95 * a]
        assert not slower, f"a larger rung is slower: {rates}"
