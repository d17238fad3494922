"""The part that splits the device by green contexts, in one process: who has which SMs, are products right, what is a
move?

A move chooses the other stream, and has it wait for the step before: the host's time for that is what a backend of
green contexts would pay. Steps that change streams each time are timed beside steps that stay.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.gpu.check.gemm import SHAPES
from tests.gpu.check.green import GreenError, split
from tests.gpu.check.report import Skip
from tests.gpu.check.stage import Figures, Stage

if TYPE_CHECKING:
    import torch

ASKED = (16, 32, 64, 96)
"""SMs of the first group."""
MOVES, SIDE = 1000, 4096


def groups_of(total: int) -> list[int]:
    """Of `ASKED`, what leaves SMs to a second group. Raises `Skip` on a device too small for two."""
    found = [count for count in ASKED if count < total]
    if not found:
        raise Skip(f"{total} SMs are no two groups: the smallest asked for has {ASKED[0]}")
    return found


def green(stage: Stage, figures: Figures) -> None:
    import torch

    from semipd_engine.model.device import open_gpu

    open_gpu()
    total = torch.cuda.get_device_properties(stage.device).multi_processor_count
    table: list[Figures] = []
    figures["lanes"] = table
    lanes: list[torch.cuda.Stream] = []
    for asked in groups_of(total):
        try:
            first, rest = split(asked)
        except GreenError as error:
            if not table:
                raise Skip(str(error)) from error
            table.append({"asked": asked, "refused": str(error)})
            continue
        streams = [torch.cuda.ExternalStream(lane.stream, device=stage.device) for lane in (first, rest)]
        row: Figures = {"asked": asked, "SMs": first.sm_count, "the rest": rest.sm_count, "refused": ""}
        table.append(row)
        row["TFLOP/s"], row["the rest's"] = (round(_tflops(stream, stage), 1) for stream in streams)
        row["wrong"] = _wrong(streams[0], stage)
        lanes = streams
        row["nobody's"] = total - first.sm_count - rest.sm_count
        assert first.sm_count >= asked, f"fewer than were asked for: {row}"
        assert not row["wrong"], row["wrong"]
    figures["moves"] = [_moves(lanes, stage)]


def _tflops(stream: torch.cuda.Stream, stage: Stage) -> float:
    import torch

    with torch.cuda.stream(stream):
        a, b = (torch.randn(SIDE, SIDE, device=stage.device).bfloat16() for _ in range(2))
        for _ in range(3):
            a @ b
        stream.synchronize()
        began = time.monotonic()
        for _ in range(20):
            a @ b
        stream.synchronize()
    return 2 * SIDE**3 * 20 / (time.monotonic() - began) / 1e12


def _wrong(stream: torch.cuda.Stream, stage: Stage) -> str:
    """The gate of every worker, on this stream's SMs."""
    import torch

    from semipd_engine.worker.gemm_gate import gate_products
    from semipd_engine.worker.servable import UnfitError

    with torch.cuda.stream(stream):
        weights = {name: torch.randn(shape, device=stage.device).bfloat16() for name, shape in SHAPES.items()}
        try:
            gate_products(weights | {"lm_head": torch.randn(SHAPES["qkv"], device=stage.device).bfloat16()})
        except UnfitError as error:
            return str(error)
    return ""


def _moves(lanes: Sequence[torch.cuda.Stream], stage: Stage) -> Figures:
    """Small steps one after the other: on one stream, and with a move before each."""
    import torch

    x, y = (torch.randn(64, SIDE, device=stage.device).bfloat16() for _ in range(2))
    weight = torch.randn(SIDE, SIDE, device=stage.device).bfloat16()
    done = [torch.cuda.Event() for _ in lanes]

    def steps(moving: bool) -> tuple[float, list[float]]:
        """Microseconds of a step, and the host's of each move."""
        torch.cuda.synchronize()
        moves, began = list[float](), time.perf_counter()
        for number in range(MOVES):
            lane = number % 2 if moving else 0
            if moving and number:
                asked = time.perf_counter()
                lanes[lane].wait_event(done[1 - lane])
                moves.append((time.perf_counter() - asked) * 1e6)
            with torch.cuda.stream(lanes[lane]):
                torch.mm(x, weight, out=y)
                done[lane].record(lanes[lane])
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / MOVES * 1e6, sorted(moves)

    steps(True)
    stay, _ = steps(False)
    moved, each = steps(True)
    return {
        "moves": len(each),
        "median us": round(each[len(each) // 2], 1),
        "p99 us": round(each[int(len(each) * 0.99)], 1),
        "us of a step that stays": round(stay, 1),
        "us of one that moves": round(moved, 1),
    }
