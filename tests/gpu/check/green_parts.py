"""The part that runs what ``mps-green`` is made of: the self-test of the agent, a worker's lanes, an engine that moves.

First two clients split the device, as the agent has it tried: which SMs each rung has, and whether lanes share any.
Then this process holds prefill's rungs as a worker does: the rate and the products of each, and the host's time for a
move. Then an engine serves on such rungs under load, and moves. All of it is the product's own code.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.gpu.check.gemm import SHAPES
from tests.gpu.check.report import Skip
from tests.gpu.check.serving_parts import streams_beside
from tests.gpu.check.stage import Figures, Stage

from semipd_agent.partitioner.mps.green import PROBE, TEXT, Green, Refused
from semipd_engine.contract import GREEN_RUNGS, DType, PartitionPlan, Phase

if TYPE_CHECKING:
    from semipd_engine.worker.lanes import Lanes

MOVES, SIDE = 1000, 4096
SERVED_MOVES = 20
SERVE_SECONDS = 25
"""For an engine, its two workers and its moves."""


def tried(environment: Mapping[str, str]) -> Green:
    """The self-test, as clients of this environment. Raises `Skip` where it refuses, RuntimeError where it fails."""
    done = subprocess.run([*PROBE, TEXT], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"the self-test ended with {done.returncode}: {done.stderr[-800:]}")
    try:
        return Green.read(json.loads(done.stdout.splitlines()[-1]))
    except Refused as refused:
        if refused.reason == "GreenProbeFailed":  # what crashed, hung or lost its context is a finding
            raise RuntimeError(f"{refused}: {done.stderr[-800:]}") from refused
        raise Skip(str(refused)) from refused


def green(stage: Stage, figures: Figures) -> None:
    found = tried(stage.rungs.environment(100))
    figures["no SM is shared"] = found.seen
    figures["as seen"] = found.why
    figures["lost"] = dict(found.lost)
    figures["SMs by rung"] = [
        {"percent": percent} | {phase.value: found.sms[phase][percent] for phase in Phase}
        for percent in found.rungs[:-1]
    ]
    _lanes(stage, figures)
    if stage.left > SERVE_SECONDS:
        _serve(stage, found, figures)
    else:
        figures["an engine that moves"] = f"{stage.left:.0f} s were left for it, and it takes {SERVE_SECONDS}"


def _lanes(stage: Stage, figures: Figures) -> None:
    from semipd_engine.model.device import open_gpu
    from semipd_engine.worker.lanes import open_lanes

    open_gpu()
    lanes = open_lanes(Phase.PREFILL, {GREEN_RUNGS: TEXT}, stage.device)
    assert lanes is not None
    table: list[Figures] = []
    figures["lanes"] = table

    def prove() -> None:
        row: Figures = {"percent": lanes.percents[lanes.chosen], "SMs": lanes.sm_counts[lanes.chosen]}
        table.append(row)
        row["TFLOP/s"] = round(_tflops(stage), 1)
        _gate(stage)

    lanes.each(prove)
    figures["lanes lost"] = {lanes.percents[number]: why for number, why in lanes.lost.items()}
    figures["moves"] = [_moves(lanes, stage)]
    assert not any("WrongProducts" in why for why in lanes.lost.values()), lanes.lost


def _tflops(stage: Stage) -> float:
    import torch

    a, b = (torch.randn(SIDE, SIDE, device=stage.device).bfloat16() for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 2 * SIDE**3 * 20 / (time.monotonic() - began) / 1e12


def _gate(stage: Stage) -> None:
    """That of every worker, on the chosen lane. Raises `UnfitError`."""
    import torch

    from semipd_engine.worker.gemm_gate import gate_products

    weights = {name: torch.randn(shape, device=stage.device).bfloat16() for name, shape in SHAPES.items()}
    gate_products(weights | {"lm_head": torch.randn(SHAPES["qkv"], device=stage.device).bfloat16()})


def _moves(lanes: Lanes, stage: Stage) -> Figures:
    """Small steps one after the other: on one lane, and with a move before each."""
    import torch

    x, y = (torch.randn(64, SIDE, device=stage.device).bfloat16() for _ in range(2))
    weight = torch.randn(SIDE, SIDE, device=stage.device).bfloat16()
    between = list(lanes.streams)[-2:]

    def steps(moving: bool) -> tuple[float, list[float]]:
        """Microseconds of a step, and the host's of each move."""
        torch.cuda.synchronize()
        moves, began = list[float](), time.perf_counter()
        for number in range(MOVES):
            asked = time.perf_counter()
            lanes.choose(between[number % 2 if moving else 0])
            moves.append((time.perf_counter() - asked) * 1e6)
            torch.mm(x, weight, out=y)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / MOVES * 1e6, sorted(moves)

    steps(True)
    stay, _ = steps(False)
    moved, each = steps(True)
    lanes.choose(0)
    return {
        "moves": len(each),
        "median us": round(each[len(each) // 2], 1),
        "p99 us": round(each[int(len(each) * 0.99)], 1),
        "us of a step that stays": round(stay, 1),
        "us of one that moves": round(moved, 1),
    }


def _serve(stage: Stage, found: Green, figures: Figures) -> None:
    """Two workers in all; every move is between rungs that they hold, so none starts a process."""
    from semipd_engine.hub.make_model import make_model

    model = stage.folder / "small"
    make_model("small", "llama", model, progress=False)

    def plan(prefill: int, decode: int) -> PartitionPlan:
        return stage.rungs.green_plan(prefill, decode, found)

    rungs = found.rungs
    low = (rungs[len(rungs) // 2], rungs[max(0, len(rungs) // 2 - 1)])
    with stage.engine(model, DType.AUTO) as running:
        seen, gaps = streams_beside(stage, running, [plan(100, 100), plan(*low)], SERVED_MOVES)
        workers = running.snapshot().workers
        rows: list[dict[str, Any]] = [
            {"phase": w.phase.value, "percent": w.percent, "SMs": w.sm_count, "lost": dict(w.lost_rungs)}
            for w in workers
        ]
        figures["workers"] = rows
        figures["served moves"] = [{"moves": len(seen), "slowest, seconds": round(max(seen), 4), **gaps}]
        assert len(workers) == len(Phase), "one worker for each phase"
        assert running.snapshot().restarts == {"prefill": 0, "decode": 0, "resident": 0}
