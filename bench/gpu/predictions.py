"""Predictions registered before the first run on a GPU: ``python -m bench.gpu.predictions [--print]``.

For each model and case: what the traced step reads, computes and holds, the least that a card can take for it, and what
we expect, as it is today and in a captured graph. `docs/gpu/predictions.json` carries the hash of its content, and
tests compute it and two of the models again: who changes the engine's step changes the file, and git says when.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu.curves import beside
from bench.gpu.estimate import ACHIEVED, CARDS, LAUNCH_SECONDS, SM_BYTES, STEP_SECONDS, Cost, Limits
from bench.gpu.models import CASES, CHUNK, CONFIGS, CONTEXT, card
from bench.gpu.step_trace import FakeWorker
from bench.gpu.witnesses import Trace
from semipd_engine.cards.weights import weight_specs
from semipd_engine.kernels.gpu import TritonKernels
from semipd_engine.model.loader import arena_entries

FILE = Path(__file__).resolve().parents[2] / "docs" / "gpu" / "predictions.json"
SMS = 132
SHARES = "time on a share of the SMs, as a multiple of that on all"
TRACED = 3
"""Layers that are traced; the others are like the last of them."""
LONGEST = max(shape.context for shapes in CASES.values() for shape in shapes)


def cost(trace: Trace, more: int) -> Cost:
    """Of a model with so many more layers like the traced one's last."""
    outside = sum(one.nbytes for one in trace.launches if one.stage < 0)
    again = [trace.stages[i][1] for i in trace.spans()[-1]] * more
    kernels = sum(trace.kernels().values()) + more * trace.layers()[-1]
    return Cost([*(work for _, work in trace.stages), *again], kernels, outside)


def predictions() -> dict[str, Any]:
    content: dict[str, Any] = {
        "what": "steps of one worker that has the whole card, bfloat16; milliseconds. Made by bench/gpu/predictions.py",
        "assumed": {
            "context of each decoding sequence": CONTEXT,
            "tokens of a prompt's step": CHUNK,
            "achieved of the data sheet": {
                name: getattr(ACHIEVED, name) for name in ("read", "products", "gathered", "scores", "latent")
            },
            "bytes per second of an SM": SM_BYTES,
            "seconds of the host for a kernel": LAUNCH_SECONDS,
            "seconds of each step beside": STEP_SECONDS,
            "cards": {
                name: {"bytes per second": one.bandwidth, "flop/s": one.flops, "SMs": one.sms}
                for name, one in CARDS.items()
            },
        },
        "models": {},
    }
    for name in CONFIGS:
        content["models"][name], costs = model(name)
        if name == "8B":
            content[SHARES] = beside(costs)
    return {"sha256": digest(content), **content}


def model(name: str) -> tuple[dict[str, Any], dict[str, list[Cost]]]:
    """What is registered of a model, and the costs of its cases' steps."""
    whole, kernels = card(name), TritonKernels(SMS)
    worker = FakeWorker(card(name, num_hidden_layers=TRACED), kernels, LONGEST)
    costs, described = {}, {}
    for case, shapes in CASES.items():
        traces = [worker.step(shape) for shape in shapes]
        costs[case] = [cost(trace, whole.num_layers - TRACED) for trace in traces]
        described[case] = _case(costs[case], max(trace.peak for trace in traces))
    entries = arena_entries(weight_specs(whole), torch.bfloat16, kernels)
    numbers = sum(math.prod(entry.shape) * getattr(torch, entry.dtype).itemsize for entry in entries)
    return {"weight bytes": numbers, "cases": described}, costs


def digest(content: dict[str, Any]) -> str:
    """Of the content without its hash."""
    bare = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def _case(costs: Sequence[Cost], peak: int) -> dict[str, Any]:
    def milliseconds(limits: Limits) -> float:
        return float(f"{sum(limits.seconds(one) for one in costs) * 1e3:.4g}")

    return {
        "steps": len(costs),
        "kernels": sum(one.launches for one in costs),
        "bytes": sum(one.nbytes for one in costs),
        "flops": sum(one.flops for one in costs),
        "peak bytes of a step": peak,
        "ms": {
            name: {
                "floor": milliseconds(one.floor),
                "expected": milliseconds(one.expected()),
                "in a graph": milliseconds(one.captured()),
            }
            for name, one in CARDS.items()
        },
    }


def rendered() -> str:
    return json.dumps(predictions(), indent=1) + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        print(rendered(), end="")
    else:
        FILE.write_text(rendered())
        print(FILE)
