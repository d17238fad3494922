"""Temperature-scaled logits to the probabilities that may be drawn: min-p, then top-k, then top-p."""

from __future__ import annotations

import torch
from torch import Tensor


def filter_logits(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """``logits [vocab]``, scaled. Returns probabilities [vocab], zero for tokens filtered away; they sum to 1.

    `top_k` 0 keeps all. `top_p` keeps the smallest set of most likely tokens whose probabilities (after top-k, scaled
    to sum to 1) reach it, at least one. `min_p` keeps tokens at least `min_p` times as likely as the most likely one.
    """
    probabilities = torch.softmax(logits, dim=-1)
    if min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < min_p * probabilities.max(), 0.0)
    if 0 < top_k < logits.numel():
        kept = probabilities.topk(top_k)  # exactly k, also where tokens are equally likely
        probabilities = torch.zeros_like(probabilities).index_copy_(0, kept.indices, kept.values)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        ordered = ordered.masked_fill(before >= top_p * ordered.sum(), 0.0)
        probabilities = torch.zeros_like(probabilities).index_copy_(0, order, ordered)
    return probabilities / probabilities.sum()
