"""``python -m tests.gpu.smoke.gemm DEVICE``: what one client under this environment reaches. Prints one line of JSON.

Square bfloat16 products on a GPU (float32 and small on a CPU), after a warm-up: ``{"sm_count", "tflops", "seconds"}``.
"""

from __future__ import annotations

import json
import sys
import time

import torch


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
    sms = torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else None
    print(json.dumps({"sm_count": sms, "tflops": 2 * size**3 * repeats / seconds / 1e12, "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1])
