"""Penalties on tokens that occurred before. Repetition counts prompt and output; presence and frequency output only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from semipd_engine.ipc.tokens import Sampling


class TokenCounts:
    def __init__(self, history: Sequence[int], prompt_len: int) -> None:
        self._seen = set(history)
        self._output = Counter(history[prompt_len:])

    def add(self, token: int) -> None:
        self._seen.add(token)
        self._output[token] += 1

    def penalise(self, logits: Tensor, sampling: Sampling) -> None:
        """Change ``logits [vocab]`` in place."""
        if sampling.repetition_penalty != 1 and self._seen:
            seen = list(self._seen)
            values = logits[seen]
            penalty = sampling.repetition_penalty
            logits[seen] = values.where(values <= 0, values / penalty).where(values > 0, values * penalty)
        if self._output and (sampling.presence_penalty or sampling.frequency_penalty):
            tokens = list(self._output)
            counts = logits.new_tensor(list(self._output.values()))
            logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
