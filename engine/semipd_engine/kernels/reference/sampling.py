"""The batched sampler in plain torch. Sorting a vocabulary is the dear part: first the likeliest `CANDIDATES` are
taken, and only rows whose mass is not among them are sorted whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.kernels.signatures import SEEN, STOPPED

CANDIDATES = 1024


def adjust(logits: Tensor, edits: Tensor, starts: Tensor, repetition: Tensor, masks: Tensor, mask_of: Tensor) -> Tensor:
    """See `signatures.Kernels.adjust`."""
    out = logits.clone()
    if len(edits):
        number = torch.arange(len(edits), dtype=torch.int32, device=logits.device)
        row = torch.searchsorted(starts[1:], number, right=True)
        token, kind = edits[:, 0].long(), edits[:, 3]
        added, taken = (edits[:, column].contiguous().view(torch.float32) for column in (1, 2))
        values = (logits[row, token] + added).masked_fill_(kind & STOPPED != 0, float("-inf"))
        penalty = repetition[row]
        penalised = torch.where(values > 0, values / penalty, values * penalty)
        out[row, token] = torch.where(kind & SEEN != 0, penalised, values) - taken
    if len(masks):
        bits = (masks[:, :, None] >> torch.arange(32, dtype=torch.int32, device=masks.device)) & 1
        allowed = bits.flatten(1)[:, : logits.shape[1]].bool()
        out.masked_fill_(~allowed[mask_of.clamp(min=0).long()] & (mask_of >= 0)[:, None], float("-inf"))
    return out


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """See `signatures.Kernels.sample`."""
    chosen = logits.argmax(dim=-1)
    drawn = (temperature > 0).nonzero().squeeze(1)
    if not len(drawn):
        return chosen
    probabilities = torch.softmax(logits[drawn] / temperature[drawn, None], dim=-1)
    probabilities = _filter(probabilities, top_k[drawn], top_p[drawn], min_p[drawn])
    return chosen.index_copy_(0, drawn, _invert(probabilities, uniform[drawn]))


def _filter(probabilities: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """``probabilities [R, vocab]`` with zeros for what the row's filters drop: min-p, then top-k, then top-p."""
    vocab = probabilities.shape[1]
    if bool((min_p > 0).any()):
        least = min_p[:, None] * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    top_k = torch.where((top_k <= 0) | (top_k > vocab), vocab, top_k)
    rows = ((top_k < vocab) | (top_p < 1)).nonzero().squeeze(1)
    count = min(CANDIDATES, vocab)
    while len(rows):
        kept, enough = _likeliest(probabilities[rows], top_k[rows], top_p[rows], count)
        probabilities = probabilities.index_copy(0, rows[enough], kept[enough])
        rows, count = rows[~enough], vocab
    return probabilities


def _likeliest(probabilities: Tensor, top_k: Tensor, top_p: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What is kept of ``[R, vocab]``, and for which rows the likeliest `count` tokens were enough to tell."""
    whole = count == probabilities.shape[1]
    values, ids = probabilities.sort(dim=-1, descending=True, stable=True) if whole else _first_of(probabilities, count)
    rank = torch.arange(count, device=probabilities.device)
    values = values.masked_fill(rank >= top_k[:, None], 0.0)
    mass = torch.where(top_k <= count, values.sum(dim=-1), probabilities.sum(dim=-1)) * top_p
    before = values.cumsum(dim=-1) - values
    keep = (before < mass[:, None]) | (top_p[:, None] >= 1)
    kept = values * keep
    # The last one taken must be likelier than the least candidate: among equals others may have been left out.
    least = probabilities.gather(1, ids)[:, -1]
    taken = (kept > 0).sum(dim=-1)
    enough = (taken < count) & (kept.gather(1, (taken - 1).clamp_(min=0)[:, None])[:, 0] > least)
    enough &= (top_k <= count) | (top_k == probabilities.shape[1])  # else the mass is not known yet
    return torch.zeros_like(probabilities).scatter_(1, ids, kept), enough | whole


def _first_of(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest `count`, in order, the first of equals first."""
    ids = probabilities.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    values, order = probabilities.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Where the cumulated probabilities, in vocabulary order, pass ``uniform [R]`` of their sum: int64 [R]."""
    cumulated = probabilities.double().cumsum(dim=-1)
    sums = cumulated[:, -1:].contiguous()
    index = torch.searchsorted(cumulated, sums * uniform[:, None], right=True)
    # Rounding may carry the point to the very end of the sum: then the last token with a probability is meant.
    return torch.minimum(index, torch.searchsorted(cumulated, sums)).clamp_(max=probabilities.shape[1] - 1).squeeze(1)
