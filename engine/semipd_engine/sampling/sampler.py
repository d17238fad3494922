"""Chooses tokens from logits. The same (seed, output index, logits) gives the same token in any batch and process.

Order of the steps, as in vLLM: logprobs are taken from the raw logits; then logit bias, the stop ids' mask
(`min_tokens`), penalties, an outside mask, for all rows together; then, in one kernel for all rows, temperature, min-p,
top-k, top-p and one draw. Knows nothing of plans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from semipd_engine.ipc.tokens import Sampling, TokenLogprobs
from semipd_engine.kernels import Kernels
from semipd_engine.sampling.penalties import NO_EDITS, Ints, NamedTokens, TokenCounts, edits


class SamplingRow:
    """One request's sampling state for the steps of one plan; rebuilt from the plan, so nothing is lost with it."""

    def __init__(self, sampling: Sampling, output_index: int, history: Sequence[int] = (), prompt_len: int = 0) -> None:
        """`history`: prompt and output tokens so far, the first `prompt_len` of them prompt; used by penalties only."""
        self.sampling = sampling
        self.output_index = output_index
        self.counts = TokenCounts(history, prompt_len) if sampling.needs_history else None
        self._named: NamedTokens | None = None

    @property
    def adjusts(self) -> bool:
        """Are its logits not the model's?"""
        return self.counts is not None or bool(self.sampling.logit_bias) or self._stops_masked

    @property
    def _stops_masked(self) -> bool:
        return bool(self.sampling.stop_token_ids) and self.output_index < self.sampling.min_tokens

    @property
    def plain(self) -> bool:
        """Is a token all that is wanted of its logits, as they are?"""
        return not self.adjusts and self.sampling.logprobs < 0

    def uniform(self, later: int = 0) -> float:
        """Where its draw falls, so many tokens after the next one; a greedy row needs none."""
        return uniform(self.sampling.seed, self.output_index + later) if self.sampling.temperature else 0.0

    def goes_on(self, later: int = 0) -> bool:
        """Is there room for a token, so many after the next one?"""
        return self.output_index + later < self.sampling.max_tokens

    def accept(self, token: int) -> None:
        """The token was chosen: the next draw is for the next output index."""
        self.output_index += 1
        if self.counts is not None:
            self.counts.add(token)

    def finished_by(self, token: int) -> bool:
        """Does the accepted `token` end the request (stop id, or max_tokens reached)?"""
        return token in self.sampling.stop_token_ids or not self.goes_on()

    def edits(self, vocab: int) -> Ints:
        """What bias, stop ids and penalties do to single tokens; `kernels.signatures.Kernels.adjust`."""
        if not self.adjusts:
            return NO_EDITS
        if self._named is None:
            self._named = NamedTokens(self.sampling)
        return edits(self.sampling, self._named, self.counts, self._stops_masked, vocab)


NOT_FINITE = -1
"""In place of a token: the model gave no number for its row."""


def as_tensors(inputs: Mapping[str, Ints]) -> dict[str, Tensor]:
    """As they lie, on the CPU."""
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def sample(
    logits: Tensor,
    rows: Sequence[SamplingRow],
    kernels: Kernels,
    masks: Sequence[bytes | None] | None = None,
    put: Callable[[Mapping[str, Ints]], Mapping[str, Tensor]] = as_tensors,
) -> list[int]:
    """One token id for each row of ``logits`` (float32 [R, vocab]). Accepts nothing: call `SamplingRow.accept`.

    `masks`: for each row None or the allowed tokens (structured output), a bit each, the lowest of a byte first; tokens
    behind their end are forbidden. A row of logits that holds NaN, or infinity as its largest, gets `NOT_FINITE`.
    `put` brings int32 arrays to the logits' device, all that a call needs at once. A GPU is waited for once, for the
    tokens.
    """
    raw = logits  # no bias and no mask is in them
    draws = any(row.sampling.temperature for row in rows)
    adjusts = any(row.adjusts for row in rows) or any(mask is not None for mask in masks or ())
    there: Mapping[str, Tensor] = {}
    if draws or adjusts:
        there = put(settings(rows) | (_adjustments(rows, masks, logits.shape[1]) if adjusts else {}))
    if adjusts:
        logits = kernels.adjust(  # a copy
            logits,
            there["edits"],
            there["starts"],
            there["repetition"].view(torch.float32),
            there["masks"],
            there["mask_of"],
        )
    # The first of equals, as the kernel.
    chosen = draw(logits, there, kernels) if draws else logits.argmax(dim=-1)
    tokens: list[int] = finite_only(chosen, raw).tolist()
    return tokens


def draw(logits: Tensor, there: Mapping[str, Tensor], kernels: Kernels) -> Tensor:
    """A token for each row as its `settings`, on the logits' device, say: int64 [R]."""
    temperature, top_p, min_p = (there[name].view(torch.float32) for name in ("temperature", "top_p", "min_p"))
    point = there["uniform"].view(torch.float64).view(-1)
    return kernels.sample(logits, temperature, there["top_k"], top_p, min_p, point)


def finite_only(chosen: Tensor, raw: Tensor) -> Tensor:
    """The tokens, but `NOT_FINITE` of a row whose logits hold NaN, or infinity as their largest."""
    return chosen.masked_fill_(~raw.amax(dim=-1).isfinite(), NOT_FINITE)


def settings(rows: Sequence[SamplingRow], later: int = 0) -> dict[str, Ints]:
    """How each row draws, so many tokens after the next one; the bits of what is no integer."""
    sampling = [row.sampling for row in rows]
    return {
        "temperature": _bits([one.temperature for one in sampling]),
        "top_k": np.array([one.top_k for one in sampling], np.int32),
        "top_p": _bits([one.top_p for one in sampling]),
        "min_p": _bits([one.min_p for one in sampling]),
        "uniform": np.array([row.uniform(later) for row in rows], np.float64).view(np.int32).reshape(-1, 2),
    }


def _bits(values: Sequence[float]) -> Ints:
    return np.array(values, np.float32).view(np.int32)


def _adjustments(rows: Sequence[SamplingRow], masks: Sequence[bytes | None] | None, vocab: int) -> dict[str, Ints]:
    """The longest at the end: what lies behind the last number of a call is not sent."""
    held = [mask for mask in masks or () if mask is not None]
    words = np.zeros((len(held), -(-vocab // 32) * 4), np.uint8)
    for bits, mask in zip(words, held, strict=True):
        whole = np.frombuffer(mask, np.uint8)[: words.shape[1]]
        bits[: len(whole)] = whole
    masked = np.array([mask is not None for mask in masks or [None] * len(rows)])
    changes = [row.edits(vocab) for row in rows]
    return {
        "repetition": _bits([row.sampling.repetition_penalty for row in rows]),
        "mask_of": np.where(masked, np.cumsum(masked) - 1, -1).astype(np.int32),
        "starts": np.cumsum([0, *map(len, changes)]).astype(np.int32),
        "masks": words.view(np.int32),
        "edits": np.concatenate(changes),
    }


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
