"""Predictions registered before the first run on a GPU: ``python -m bench.gpu.predictions [--print]``.

For each model and case: what the traced step reads, computes and holds, the least that a card can take for it, and what
we expect, as it is today and in a captured graph. `docs/gpu/predictions.json` carries the hash of its content, and a
test computes both again: who changes the engine's step changes the file, and git says when.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.estimate import ACHIEVED, CARDS, LAUNCH_SECONDS, SM_BYTES, STEP_SECONDS, Cost
from bench.gpu.models import CASES, CHUNK, CONFIGS, CONTEXT, card
from bench.gpu.step_trace import FakeWorker, Trace
from semipd_engine.kernels.gpu import TritonKernels

FILE = Path(__file__).resolve().parents[2] / "docs" / "gpu" / "predictions.json"
SMS = 132
FEW_LAYERS = 3
"""That are traced of a model with experts, whose layers cost the same; the others are counted."""


def cost(trace: Trace) -> Cost:
    outside = sum(one.nbytes for one in trace.launches if one.stage < 0)
    return Cost([work for _, work in trace.stages], sum(trace.kernels().values()), outside)


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
        "models": {name: _model(name) for name in CONFIGS},
    }
    return {"sha256": digest(content), **content}


def digest(content: dict[str, Any]) -> str:
    """Of the content without its hash."""
    bare = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def _model(name: str) -> dict[str, Any]:
    worker = FakeWorker(
        card(name), TritonKernels(SMS), max(shape.context for shapes in CASES.values() for shape in shapes)
    )
    cases = {case: _case([worker.step(shape) for shape in shapes]) for case, shapes in CASES.items()}
    return {"weight bytes": worker.weight_bytes, "cases": cases}


def _case(traces: Sequence[Trace]) -> dict[str, Any]:
    costs = [cost(trace) for trace in traces]

    def milliseconds(limits: Any) -> float:
        return float(f"{sum(limits.seconds(one) for one in costs) * 1e3:.4g}")

    return {
        "steps": len(traces),
        "kernels": sum(one.launches for one in costs),
        "bytes": sum(one.nbytes for one in costs),
        "flops": sum(one.flops for one in costs),
        "peak bytes of a step": max(trace.peak for trace in traces),
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
