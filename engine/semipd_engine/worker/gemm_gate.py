"""Does this process multiply right? Matrix products under an SM limit were seen to be wrong without an error.

A kernel that was sized for the whole device leaves tiles out, or adds them twice, on a part of it. So before a worker
serves on its rung, one product of each of the model's own shapes, at row counts from a decode step to a prompt chunk,
is held against float64. Knows no plans and no KV.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from semipd_engine.worker.servable import UnfitError

ROWS = (1, 16, 64, 256, 2048)
STRIDE = 32
"""Every so many output columns one is recomputed: each tile of any kernel has some."""
MOST_BYTES = 128 << 20
"""Of one product's output; larger ones (a vocabulary at the longest chunk) are no product that a step makes."""
WORST = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest error of one number, of itself and its column's usual size. Rounding is at most 2**-12 of them in float16 and
2**-9 in bfloat16, and some more where a sum was split; in float32 the sums' own error is near 1e-6, and
TensorFloat-32, which was not asked for, shows at 5e-4."""


def gate_products(weights: Mapping[str, Tensor]) -> None:
    """Raises `UnfitError` (WrongProducts) with the shape and the error of the first product that is wrong.

    `weights`: the arena's tensors, matrices as [output, input]; each shape is tried once. The embedding is looked up,
    not multiplied, unless it is the output layer as well.
    """
    tied = "lm_head" not in weights
    matrices = {
        one.shape: (name, one)
        for name, tensor in weights.items()
        if tensor.dim() > 1 and (tied or name != "embedding")
        for one in (tensor[0] if tensor.dim() == 3 else tensor,)  # a group: its matrices have one shape
    }
    for name, weight in matrices.values():
        for rows in ROWS:
            if rows * weight.shape[0] * weight.element_size() <= MOST_BYTES:
                _check(name, weight, rows)
            if weight.device.type == "cuda":
                torch.cuda.empty_cache()


def _check(name: str, weight: Tensor, rows: int) -> None:
    generator = torch.Generator(weight.device).manual_seed(rows)
    x = torch.randn(rows, weight.shape[1], dtype=torch.float32, device=weight.device, generator=generator)
    x = x.to(weight.dtype)
    columns = torch.arange(0, weight.shape[0], STRIDE, device=weight.device)
    want = x.double() @ weight[columns].double().T
    got = F.linear(x, weight)[:, columns].double()
    size = want.square().mean(dim=0).sqrt() + want.abs()  # near zero, what the column usually holds
    worst = float(((got - want).abs() / (size + torch.finfo(weight.dtype).tiny)).max())
    if not worst <= WORST[weight.dtype]:  # NaN is wrong, too
        output, width = weight.shape
        raise UnfitError(
            "WrongProducts",
            f"[{rows}, {width}] x [{width}, {output}] ({name}) in {str(weight.dtype).removeprefix('torch.')} is wrong "
            f"by {worst:.2g} of a number's size under this worker's limit",
        )
