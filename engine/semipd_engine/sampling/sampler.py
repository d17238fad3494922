"""Chooses tokens from logits. The same (seed, output index, logits) gives the same token in any batch and process.

Order of the steps, as in vLLM: logprobs are taken from the raw logits; then logit bias, the stop ids' mask
(`min_tokens`), penalties, an outside mask; then, in one kernel for all rows, temperature, min-p, top-k, top-p and one
draw. Knows nothing of plans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from semipd_engine.ipc.tokens import Sampling, TokenLogprobs
from semipd_engine.kernels import Kernels
from semipd_engine.sampling.penalties import TokenCounts


class SamplingRow:
    """One request's sampling state for the steps of one plan; rebuilt from the plan, so nothing is lost with it."""

    def __init__(self, sampling: Sampling, output_index: int, history: Sequence[int] = (), prompt_len: int = 0) -> None:
        """`history`: prompt and output tokens so far, the first `prompt_len` of them prompt; used by penalties only."""
        self.sampling = sampling
        self.output_index = output_index
        self.counts = TokenCounts(history, prompt_len) if sampling.needs_history else None

    @property
    def adjusts(self) -> bool:
        """Are its logits not the model's?"""
        return self.counts is not None or bool(self.sampling.logit_bias) or self._stops_masked

    @property
    def _stops_masked(self) -> bool:
        return bool(self.sampling.stop_token_ids) and self.output_index < self.sampling.min_tokens

    @property
    def uniform(self) -> float:
        """Where its next draw falls; a greedy row needs none."""
        return uniform(self.sampling.seed, self.output_index) if self.sampling.temperature else 0.0

    def accept(self, token: int) -> None:
        """The token was chosen: the next draw is for the next output index."""
        self.output_index += 1
        if self.counts is not None:
            self.counts.add(token)

    def finished_by(self, token: int) -> bool:
        """Does the accepted `token` end the request (stop id, or max_tokens reached)?"""
        return token in self.sampling.stop_token_ids or self.output_index >= self.sampling.max_tokens

    def adjust(self, logits: Tensor) -> None:
        """Bias, stop-id mask and penalties on ``logits [vocab]``, in place."""
        sampling = self.sampling
        if sampling.logit_bias:
            ids = [token for token in sampling.logit_bias if 0 <= token < logits.numel()]
            logits[ids] += logits.new_tensor([sampling.logit_bias[token] for token in ids])
        if self._stops_masked:
            logits[[token for token in sampling.stop_token_ids if 0 <= token < logits.numel()]] = float("-inf")
        if self.counts is not None:
            self.counts.penalise(logits, sampling)


NOT_FINITE = -1
"""In place of a token: the model gave no number for its row."""


def sample(
    logits: Tensor, rows: Sequence[SamplingRow], kernels: Kernels, masks: Sequence[Tensor | None] | None = None
) -> list[int]:
    """One token id for each row of ``logits`` (float32 [R, vocab]). Accepts nothing: call `SamplingRow.accept`.

    `masks`: for each row None or a bool tensor [vocab] of the allowed tokens (structured output). A row of logits that
    holds NaN, or infinity as its largest, gets `NOT_FINITE`. All is fetched at once: a GPU is waited for once.
    """
    finite = logits.amax(dim=-1).isfinite()  # of the raw ones: no bias and no mask is in them; NaN, if one is there
    changed = [i for i, row in enumerate(rows) if row.adjusts or (masks is not None and masks[i] is not None)]
    if changed:
        logits = logits.clone()  # the raw ones are for the log-probabilities
    for i in changed:
        rows[i].adjust(logits[i])
        mask = masks[i] if masks is not None else None
        if mask is not None:
            logits[i].masked_fill_(~mask, float("-inf"))

    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(logits.device, non_blocking=True)

    sampling = [row.sampling for row in rows]
    if not any(one.temperature for one in sampling):
        chosen = logits.argmax(dim=-1)  # the first of equals, as the kernel; and nothing to send to a GPU
    else:
        chosen = kernels.sample(
            logits,
            column([one.temperature for one in sampling], torch.float32),
            column([one.top_k for one in sampling], torch.int32),
            column([one.top_p for one in sampling], torch.float32),
            column([one.min_p for one in sampling], torch.float32),
            column([row.uniform for row in rows], torch.float64),
        )
    tokens: list[int] = chosen.masked_fill_(~finite, NOT_FINITE).tolist()
    return tokens


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits: a hash of seed and output index, so any process draws the same one, in
    any order."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def token_logprobs(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """Of one token for each row of the raw ``logits [R, vocab]``, with its rank and the row's `counts` most likely
    ones, or all there are. Not a number where a logit is none. All is fetched at once: a GPU is waited for once."""
    values = torch.log_softmax(logits, dim=-1)
    own = values.gather(1, torch.tensor(tokens, device=values.device)[:, None])
    ranks = 1 + (values > own).sum(dim=-1, keepdim=True)
    best = values.topk(min(max(counts), values.shape[1]), dim=-1)
    likeliest = best.values.shape[1]
    columns = (own.double(), ranks.double(), best.values.double(), best.indices.double())  # which holds each of them
    found = []
    for count, (logprob, rank, *top) in zip(counts, torch.cat(columns, dim=-1).tolist(), strict=True):
        ids = [int(token) for token in top[likeliest : likeliest + count]]
        found.append(TokenLogprobs(logprob, list(zip(ids, top[:count], strict=False)), int(rank)))
    return found
