"""``python -m tests.gpu.check.gemm DEVICE``: what one client under this environment reaches. Prints one line of JSON.

Square bfloat16 products on a GPU (float32 and small on a CPU), after a warm-up, and then the gate that every worker
passes, at an 8 B model's shapes: ``{"sm_count", "tflops", "seconds", "wrong"}`` (empty: all products are right).
"""

from __future__ import annotations

import json
import sys
import time

import torch
from tests.gpu.check.stand_in import sms_seen

from semipd_engine.worker.gemm_gate import gate_products
from semipd_engine.worker.servable import UnfitError

SHAPES = {"qkv": (6144, 4096), "attention_output": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
SMALL = {"qkv": (96, 64), "down": (64, 256)}


def main(device: str) -> None:
    size, repeats, dtype = (8192, 60, torch.bfloat16) if device == "cuda" else (256, 4, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def finish() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    for _ in range(3):
        a @ b
    began = finish()
    for _ in range(repeats):
        a @ b
    seconds = finish() - began
    shapes = SHAPES if device == "cuda" else SMALL
    wrong = ""
    try:
        gate_products(
            {name: torch.randn(shape, device=device).to(dtype) for name, shape in shapes.items()}
            | {"lm_head": torch.randn(shapes["qkv"], device=device).to(dtype)}
        )
    except UnfitError as error:
        wrong = str(error)
    sms = torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else sms_seen()
    found = {"sm_count": sms, "tflops": 2 * size**3 * repeats / seconds / 1e12, "seconds": seconds, "wrong": wrong}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
