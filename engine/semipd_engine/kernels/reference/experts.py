"""Experts in plain torch: their choice, their products, and the sum of what they say."""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.kernels.signatures import RoutingRule


def route(
    logits: Tensor,
    correction: Tensor | None,
    rule: RoutingRule,
    experts: Tensor,
    weights: Tensor,
    order: Tensor,
    starts: Tensor,
) -> None:
    """See `signatures.Kernels.route`."""
    scores = logits.sigmoid() if rule.sigmoid else logits.softmax(-1)
    choice = scores if correction is None else scores + correction
    if rule.groups > 1:
        grouped = choice.view(choice.shape[0], rule.groups, choice.shape[1] // rule.groups)
        values = grouped.topk(2, dim=-1).values.sum(-1) if rule.sigmoid else grouped.amax(-1)
        best = values.topk(rule.groups_chosen, dim=-1).indices
        closed = torch.ones_like(values, dtype=torch.bool).scatter_(1, best, False)
        choice = grouped.masked_fill(closed[:, :, None], float("-inf")).flatten(1)
    chosen = choice.topk(rule.chosen, dim=-1).indices
    taken = scores.gather(1, chosen)
    if rule.normalise:
        taken = taken / (taken.sum(-1, keepdim=True) + 1e-20)
    experts.copy_(chosen)
    torch.mul(taken, rule.scale, out=weights)
    places = chosen.flatten()
    order.copy_(places.argsort(stable=True))
    starts[:1].zero_()  # a number of the host would be a copy to the device
    starts[1:] = places.bincount(minlength=rule.experts).cumsum(0)


def combine(x: Tensor, weights: Tensor, out: Tensor, shared: Tensor | None) -> None:
    """See `signatures.Kernels.combine`."""
    said = x.view(*weights.shape, out.shape[1]).float()
    total = (said * weights[:, :, None]).sum(1)
    out.copy_(total if shared is None else total + shared)
