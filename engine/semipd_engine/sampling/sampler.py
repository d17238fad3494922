"""Chooses tokens from logits. The same (seed, output index, logits) gives the same token in any batch and process.

Order of the steps, as in vLLM: logprobs are taken from the raw logits; then logit bias, the stop ids' mask
(`min_tokens`), penalties, an outside mask, temperature, min-p, top-k, top-p, and one draw. All of it happens where the
logits are, and the ids of all rows are fetched at once. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semipd_engine.ipc.messages import Sampling, TokenLogprobs
from semipd_engine.sampling.filters import filter_logits
from semipd_engine.sampling.penalties import TokenCounts
from semipd_engine.sampling.random import uniform


class SamplingRow:
    """One request's sampling state for the steps of one plan; rebuilt from the plan, so nothing is lost with it."""

    def __init__(self, sampling: Sampling, output_index: int, history: Sequence[int] = (), prompt_len: int = 0) -> None:
        """`history`: prompt and output tokens so far, the first `prompt_len` of them prompt; used by penalties only."""
        self.sampling = sampling
        self.output_index = output_index
        self.counts = TokenCounts(history, prompt_len) if sampling.needs_history else None

    @property
    def plain_greedy(self) -> bool:
        """True if the token is simply the most likely one."""
        sampling = self.sampling
        return sampling.temperature == 0 and self.counts is None and not sampling.logit_bias and not self._stops_masked

    @property
    def _stops_masked(self) -> bool:
        return bool(self.sampling.stop_token_ids) and self.output_index < self.sampling.min_tokens

    def accept(self, token: int) -> None:
        """The token was chosen: the next draw is for the next output index."""
        self.output_index += 1
        if self.counts is not None:
            self.counts.add(token)

    def finished_by(self, token: int) -> bool:
        """Does the accepted `token` end the request (stop id, or max_tokens reached)?"""
        return token in self.sampling.stop_token_ids or self.output_index >= self.sampling.max_tokens

    def adjust(self, logits: Tensor) -> Tensor:
        """Bias, stop-id mask and penalties on a copy of ``logits [vocab]``."""
        sampling, logits = self.sampling, logits.clone()
        if sampling.logit_bias:
            ids = [token for token in sampling.logit_bias if 0 <= token < logits.numel()]
            logits[ids] += logits.new_tensor([sampling.logit_bias[token] for token in ids])
        if self._stops_masked:
            logits[[token for token in sampling.stop_token_ids if 0 <= token < logits.numel()]] = float("-inf")
        if self.counts is not None:
            self.counts.penalise(logits, sampling)
        return logits


def sample(logits: Tensor, rows: Sequence[SamplingRow], masks: Sequence[Tensor | None] | None = None) -> list[int]:
    """One token id for each row of ``logits`` (float32 [R, vocab]). Accepts nothing: call `SamplingRow.accept`.

    `masks`: for each row None or a bool tensor [vocab] of the allowed tokens (structured output).
    """
    chosen = logits.argmax(dim=-1)
    for i, row in enumerate(rows):
        mask = masks[i] if masks is not None else None
        if row.plain_greedy and mask is None:
            continue
        adjusted = row.adjust(logits[i])
        if mask is not None:
            adjusted.masked_fill_(~mask, float("-inf"))
        chosen[i] = _draw(adjusted, row)
    tokens: list[int] = chosen.tolist()
    return tokens


def logprobs(logits: Tensor, rows: Sequence[SamplingRow], tokens: Sequence[int]) -> list[TokenLogprobs | None]:
    """Log-probabilities under the raw ``logits [R, vocab]`` for the rows that ask for them, None for the others."""
    results: list[TokenLogprobs | None] = [None] * len(rows)
    wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs >= 0]
    if not wanted:
        return results
    values = torch.log_softmax(logits[wanted], dim=-1)
    for row, i in zip(values, wanted, strict=True):
        count = min(rows[i].sampling.logprobs, row.numel())
        best = row.topk(count)
        top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        results[i] = TokenLogprobs(float(row[tokens[i]]), top)
    return results


def _draw(logits: Tensor, row: SamplingRow) -> Tensor:
    """Inversion of the cumulated distribution in vocabulary order, at a number that only seed and index decide.

    The token's id, int64 [] on the device of the logits.
    """
    sampling = row.sampling
    if sampling.temperature == 0:
        return logits.argmax()
    probabilities = filter_logits(logits / sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    cumulated = probabilities.double().cumsum(0)
    whole = cumulated[-1:]
    index = torch.searchsorted(cumulated, whole * uniform(sampling.seed, row.output_index), right=True)
    # Rounding may carry the point to the very end of the sum: then the last token with a probability is meant.
    return torch.minimum(index, torch.searchsorted(cumulated, whole)).clamp_(max=logits.numel() - 1).squeeze(0)
