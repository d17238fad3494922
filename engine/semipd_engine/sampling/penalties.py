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


class NamedTokens:
    """Those of which a request says something itself: arrays, made once for all steps of a plan."""

    def __init__(self, sampling: Sampling) -> None:
        self.biased, self.bias = np.frombuffer(sampling.logit_bias, np.int32).reshape(2, -1)
        """In order, each once; and the bits of what is added to their logits."""
        self.stops: Ints = np.unique(np.array(sampling.stop_token_ids, np.int32))


def edits(sampling: Sampling, named: NamedTokens, counts: TokenCounts | None, stops_masked: bool, vocab: int) -> Ints:
    """``[n, 4]``, as `kernels.signatures.Kernels.adjust` takes those of one row. No loop over tokens: each row of each
    step has its turn."""
    known = np.searchsorted(named.biased, vocab)
    biased, bias = named.biased[:known], named.bias[:known]
    stops = named.stops[: np.searchsorted(named.stops, vocab)] if stops_masked else named.stops[:0]
    sets = [each for each in (biased, stops, None if counts is None else counts.seen) if each is not None and len(each)]
    tokens = sets[0] if len(sets) == 1 else np.unique(np.concatenate([NO_EDITS[:, 0], *sets]))
    found = np.zeros((len(tokens), 4), np.int32)
    found[:, 0] = tokens
    found[np.searchsorted(tokens, biased), 1] = bias
    found[np.searchsorted(tokens, stops), 3] = STOPPED
    if counts is not None:
        presence, frequency = np.float32(sampling.presence_penalty), np.float32(sampling.frequency_penalty)
        lessened = np.where(counts.outputs > 0, presence + frequency * counts.outputs, np.float32(0))
        seen = np.searchsorted(tokens, counts.seen)
        found[seen, 2] = lessened.view(np.int32)
        found[seen, 3] |= SEEN
    return found
