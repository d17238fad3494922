"""How fast kernels are on one core: tables, fixed before the first step. Who paces them cuts their work by these.

Knows which kernels there are; knows no stage and no budget. Nothing here is measured on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    read: float
    """Bytes per second."""
    products: float
    """Multiply-adds of matrix products per second, at many rows."""
    gathered: float
    """The same of `Kernels.grouped_linear`, whose rows lie anywhere."""
    scores: float
    """Multiply-adds of attention per second."""
    latent: float
    """The same of latent attention."""


RATES: Mapping[str, Rates] = {
    "reference": Rates(4e9, 4e10, 2e10, 4e9, 4e9),
    "avx2": Rates(8e9, 2.5e10, 2e10, 2e10, 2e10),
    "avx512": Rates(8e9, 5e10, 4e10, 3e10, 3e10),
    "avx512_bf16": Rates(8e9, 6e10, 4e10, 3e10, 3e10),
    "amx": Rates(8e9, 4e11, 1.3e11, 1e11, 1e11),
}
"""By the kernels' name, in bfloat16: `bench.kernel_rates` on a busy machine, rounded down; the reference's far down, as
torch may have less to work with elsewhere. Cautious: a piece may take less than its budget, seldom more."""
UNPACED = Rates(1e15, 1e15, 1e15, 1e15, 1e15)
"""Of kernels that are not paced."""
