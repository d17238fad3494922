"""SwiGLU: one layer's feed-forward block. Exchangeable: a mixture of experts reads and writes the same buffers."""

from __future__ import annotations

from semipd_engine.kernels import PANEL, Kernels
from semipd_engine.model.layers.linear import Linear, Project
from semipd_engine.model.layers.norm import BLOCK, NORMED
from semipd_engine.model.stage import Stage, Step, Work

GATE_UP, INNER = "gate_up", "inner"


class SiluMul:
    """Stage: ``inner = silu(gate) * up``."""

    recordable = True

    def __init__(self, kernels: Kernels, width: int, source: str = GATE_UP, target: str = INNER, each: int = 1) -> None:
        """`each`: rows of `width` in a row of the buffers."""
        self._kernels, self._width = kernels, width
        self._source, self._target, self._each = source, target, each

    def units(self, step: Step) -> int:
        return step.batch.rows * self._each

    def work(self, step: Step) -> Work:
        return Work(read=3 * self.units(step) * self._width * step.workspace.itemsize)

    def run(self, step: Step, begin: int, end: int) -> None:
        gate_up = step.rows(self._source, 2 * self._width * self._each).view(-1, 2 * self._width)
        inner = step.rows(self._target, self._width * self._each).view(-1, self._width)
        self._kernels.silu_mul(gate_up[begin:end], inner[begin:end])


class ProjectGated:
    """Stage: ``inner = silu(gate) * up``, with the product that makes both."""

    recordable = True

    def __init__(self, linear: Linear, source: str, target: str) -> None:
        self._linear, self._source, self._target = linear, source, target

    def units(self, step: Step) -> int:
        return self._linear.panels // 2

    def work(self, step: Step) -> Work:
        return self._linear.work(step.batch.rows)

    def run(self, step: Step, begin: int, end: int) -> None:
        linear = self._linear
        x, inner = step.rows(self._source, linear.in_features), step.rows(self._target, linear.out_features // 2)
        linear.run_gated(x, inner, begin, end)


def swiglu(kernels: Kernels, gate_up: Linear, down: Linear, tag: str = "", target: str = BLOCK) -> list[Stage]:
    """From `normed` to `target`; `block` is what the next norm adds to the residual stream. `tag`: of the buffers
    between, where a model has blocks of several widths."""
    if down.in_features % PANEL:  # the up would begin inside a panel of the gate's
        inner: list[Stage] = [
            Project(gate_up, NORMED, tag + GATE_UP),
            SiluMul(kernels, down.in_features, tag + GATE_UP, tag + INNER),
        ]
    else:
        inner = [ProjectGated(gate_up, NORMED, tag + INNER)]
    return [*inner, Project(down, tag + INNER, target)]
