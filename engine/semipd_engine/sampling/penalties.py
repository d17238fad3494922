"""Tokens that occurred before, and what a request wants of the logits of single tokens.

Repetition counts prompt and output; presence and frequency count the output only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from semipd_engine.ipc.tokens import Sampling
from semipd_engine.kernels import SEEN, STOPPED

Ints = npt.NDArray[np.int32]
NO_EDITS: Ints = np.zeros((0, 4), np.int32)


class TokenCounts:
    def __init__(self, history: Sequence[int], prompt_len: int) -> None:
        tokens = np.asarray(history, np.int32)
        self.seen: Ints = np.unique(tokens)
        """In order, each once."""
        made, counts = np.unique(tokens[prompt_len:], return_counts=True)
        self.outputs: npt.NDArray[np.float32] = np.zeros(len(self.seen), np.float32)
        """How often each is in the output."""
        self.outputs[np.searchsorted(self.seen, made)] = counts

    def add(self, token: int) -> None:
        at = int(np.searchsorted(self.seen, token))
        if at == len(self.seen) or self.seen[at] != token:
            self.seen, self.outputs = np.insert(self.seen, at, token), np.insert(self.outputs, at, 0)
        self.outputs[at] += 1


def edits(sampling: Sampling, counts: TokenCounts | None, stops_masked: bool, vocab: int) -> Ints:
    """``[n, 4]``, as `kernels.signatures.Kernels.adjust` takes those of one row."""
    named = set(sampling.logit_bias)
    if stops_masked:
        named.update(sampling.stop_token_ids)
    others = np.array(sorted(token for token in named if 0 <= token < vocab), np.int32)
    if counts is None:
        tokens, seen = others, 0
    else:
        tokens, seen = np.concatenate((counts.seen, others[~np.isin(others, counts.seen)])), len(counts.seen)
    found = np.zeros((len(tokens), 4), np.int32)
    found[:, 0] = tokens
    found[:seen, 3] = SEEN
    if counts is not None:
        presence, frequency = np.float32(sampling.presence_penalty), np.float32(sampling.frequency_penalty)
        lessened = np.where(counts.outputs > 0, presence + frequency * counts.outputs, np.float32(0))
        found[:seen, 2] = lessened.view(np.int32)
    where = {int(token): at for token, at in zip(others, _places(tokens, others), strict=True)}
    for token, bias in sampling.logit_bias.items():
        if token in where:
            found[where[token], 1] = np.float32(bias).view(np.int32)
    if stops_masked:
        found[[where[token] for token in set(sampling.stop_token_ids) if token in where], 3] |= STOPPED
    return found


def _places(tokens: Ints, wanted: Ints) -> npt.NDArray[np.intp]:
    """Where each of the `wanted` ones is among `tokens`."""
    order = np.argsort(tokens, kind="stable")
    return order[np.searchsorted(tokens, wanted, sorter=order)]
