"""SwiGLU: one layer's feed-forward block. Exchangeable: a mixture of experts reads and writes the same buffers."""

from __future__ import annotations

from semipd_engine.kernels import Kernels
from semipd_engine.model.layers.linear import Linear, Project
from semipd_engine.model.layers.norm import BLOCK, NORMED
from semipd_engine.model.stage import Stage, Step, Work

GATE_UP, INNER = "gate_up", "inner"


class SiluMul:
    """Stage: ``inner = silu(gate) * up``."""

    recordable = True

    def __init__(self, kernels: Kernels, width: int) -> None:
        self._kernels, self._width = kernels, width

    def units(self, step: Step) -> int:
        return step.batch.rows

    def work(self, step: Step) -> Work:
        return Work(read=3 * step.batch.rows * self._width * step.workspace.itemsize)

    def run(self, step: Step, begin: int, end: int) -> None:
        gate_up, inner = step.rows(GATE_UP, 2 * self._width), step.rows(INNER, self._width)
        self._kernels.silu_mul(gate_up[begin:end], inner[begin:end])


def swiglu(kernels: Kernels, gate_up: Linear, down: Linear) -> list[Stage]:
    """From `normed` to `block`, which the next norm adds to the residual stream."""
    return [
        Project(gate_up, NORMED, GATE_UP),
        SiluMul(kernels, down.in_features),
        Project(down, INNER, BLOCK),
    ]
