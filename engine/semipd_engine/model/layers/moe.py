"""A mixture of experts in place of the feed-forward block: each row goes through the few that its router chooses.

Rows are never copied per expert: the products take a row's place among the chosen, so only experts that were chosen are
read, and a row's sums do not depend on who else chose its experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.cards.blocks import Routing
from semipd_engine.kernels import PANEL, Kernels
from semipd_engine.model.layers.linear import GroupedLinear, Linear, Project
from semipd_engine.model.layers.mlp import SiluMul
from semipd_engine.model.layers.norm import BLOCK, NORMED
from semipd_engine.model.stage import Stage, Step, Work

LOGITS, WEIGHTS, CHOSEN, ORDER, STARTS = "router", "expert_weights", "experts", "expert_order", "expert_starts"
GATE_UP, INNER, SAID, SHARED = "expert_gate_up", "expert_inner", "expert_said", "shared_said"


def _places(step: Step, routing: Routing) -> tuple[Tensor, Tensor]:
    """The places of the chosen in the order of their experts, int32 [T * K], and where each expert's begin."""
    order = step.rows(ORDER, routing.chosen, torch.int32).view(-1)
    return order, step.rows(STARTS, routing.experts + 1, torch.int32)[0]


class Route:
    """Stage: from the router's logits to each row's experts and their weights."""

    recordable = True

    def __init__(self, kernels: Kernels, routing: Routing, correction: Tensor | None) -> None:
        self._kernels, self._routing, self._correction = kernels, routing, correction

    def units(self, step: Step) -> int:
        return 1

    def work(self, step: Step) -> Work:
        return Work(read=16 * step.batch.rows * self._routing.experts)

    def run(self, step: Step, begin: int, end: int) -> None:
        routing = self._routing
        self._kernels.route(
            step.rows(LOGITS, routing.experts, torch.float32),
            self._correction,
            routing,
            step.rows(CHOSEN, routing.chosen, torch.int32),
            step.rows(WEIGHTS, routing.chosen, torch.float32),
            *_places(step, routing),
        )


class ProjectExperts:
    """Stage: ``target = source @ expert.T`` for each place; `source` has a row for each place or for each token."""

    recordable = True

    def __init__(self, linear: GroupedLinear, routing: Routing, source: str, target: str, per_place: bool) -> None:
        self._linear, self._routing = linear, routing
        self._source, self._target = source, target
        self._each = routing.chosen if per_place else 1

    def units(self, step: Step) -> int:
        return self._linear.panels

    def work(self, step: Step) -> Work:
        return self._linear.work(step.batch.rows * self._routing.chosen)

    def run(self, step: Step, begin: int, end: int) -> None:
        wide, narrow = self._linear.in_features, self._linear.out_features
        x = step.rows(self._source, wide * self._each).view(-1, wide)
        out = step.rows(self._target, narrow * self._routing.chosen).view(-1, narrow)
        self._linear.run(x, out, begin, end, *_places(step, self._routing))


class ProjectGatedExperts:
    """Stage: ``inner = silu(gate) * up`` for each place, with the product that makes both."""

    recordable = True

    def __init__(self, linear: GroupedLinear, routing: Routing) -> None:
        self._linear, self._routing = linear, routing

    def units(self, step: Step) -> int:
        return -(-self._linear.out_features // 2 // PANEL)

    def work(self, step: Step) -> Work:
        return self._linear.work(step.batch.rows * self._routing.chosen)

    def run(self, step: Step, begin: int, end: int) -> None:
        width = self._linear.out_features // 2
        x, inner = step.rows(NORMED, self._linear.in_features), step.rows(INNER, width * self._routing.chosen)
        self._linear.run_gated(x, inner.view(-1, width), begin, end, *_places(step, self._routing))


class Combine:
    """Stage: ``block = the chosen experts' words, weighed, and the shared expert's``."""

    recordable = True

    def __init__(self, kernels: Kernels, routing: Routing, width: int, shared: bool) -> None:
        self._kernels, self._routing, self._width, self._shared = kernels, routing, width, shared

    def units(self, step: Step) -> int:
        return step.batch.rows

    def work(self, step: Step) -> Work:
        return Work(read=(self._routing.chosen + 2) * step.batch.rows * self._width * step.workspace.itemsize)

    def run(self, step: Step, begin: int, end: int) -> None:
        chosen = self._routing.chosen
        said = step.rows(SAID, self._width * chosen).view(-1, self._width)
        self._kernels.combine(
            said[begin * chosen : end * chosen],
            step.rows(WEIGHTS, chosen, torch.float32)[begin:end],
            step.rows(BLOCK, self._width)[begin:end],
            step.rows(SHARED, self._width)[begin:end] if self._shared else None,
        )


def mixture(
    kernels: Kernels,
    routing: Routing,
    router: Linear,
    correction: Tensor | None,
    gate_up: GroupedLinear,
    down: GroupedLinear,
    shared: list[Stage],
) -> list[Stage]:
    """From `normed` to `block`. `shared`: stages of an expert for all rows, from `normed` to `shared_said`; or none."""
    if gate_up.gates:
        inner: list[Stage] = [ProjectGatedExperts(gate_up, routing)]
    else:
        inner = [
            ProjectExperts(gate_up, routing, NORMED, GATE_UP, per_place=False),
            SiluMul(kernels, down.in_features, GATE_UP, INNER, each=routing.chosen),
        ]
    return [
        Project(router, NORMED, LOGITS, torch.float32),
        Route(kernels, routing, correction),
        *inner,
        ProjectExperts(down, routing, INNER, SAID, per_place=True),
        *shared,
        Combine(kernels, routing, down.out_features, bool(shared)),
    ]
