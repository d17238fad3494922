"""What `transformers` answers in float32, greedily, with log-probabilities. It knows nothing of the project's engine.

`greedy` decodes step by step. `follow` needs one pass for a whole answer: with the answer as its input, the most
likely token at each place is the greedy one as long as all before it were, so an answer that equals `follow` everywhere
equals `greedy`, by induction, at a fraction of the cost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Continuation(NamedTuple):
    token_ids: list[int]
    logprobs: list[float]
    """Of those tokens under the whole vocabulary, natural logarithm."""


class Reference:
    """`transformers` on one model folder; one prompt at a time, eager attention, one thread."""

    def __init__(self, model: Path, device: torch.device | str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)  # what is compared has the same cores
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        self._model, self._device = loaded.eval().to(device), device

    def greedy(self, prompt: Sequence[int], tokens: int, stop: int | None = None) -> Continuation:
        """At most `tokens` after `prompt`; the end-of-sequence token is one like others, `stop` is the last."""
        import torch

        ids: list[int] = []
        logprobs: list[float] = []
        step, cached = torch.tensor([list(prompt)], device=self._device), None
        with torch.inference_mode():
            while len(ids) < tokens and (not ids or ids[-1] != stop):
                output = self._model(step, past_key_values=cached, use_cache=True, logits_to_keep=1)
                cached = output.past_key_values
                best = output.logits[0, -1].float().log_softmax(-1).max(-1)
                ids.append(int(best.indices))
                logprobs.append(float(best.values))
                step = best.indices.view(1, 1)
        return Continuation(ids, logprobs)

    def follow(self, prompt: Sequence[int], answer: Sequence[int]) -> Continuation:
        """The most likely token at each place of `answer`, given the prompt and the answer before it."""
        import torch

        ids = torch.tensor([[*prompt, *answer[:-1]]], device=self._device)
        with torch.inference_mode():
            logits = self._model(ids, use_cache=False, logits_to_keep=len(answer)).logits[0].float()
        best = logits.log_softmax(-1).max(-1)
        return Continuation(best.indices.tolist(), best.values.tolist())

    def score(self, prompt: Sequence[int]) -> list[float]:
        """Log-probabilities of the prompt's own tokens, from the second on."""
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([list(prompt)], device=self._device), use_cache=False).logits[0].float()
        targets = torch.tensor(prompt[1:], device=self._device).unsqueeze(1)
        scores: list[float] = logits[:-1].log_softmax(-1).gather(1, targets).squeeze(1).tolist()
        return scores


@cache
def reference(model: Path) -> Reference:
    return Reference(model)


def greedy(model: Path, prompt: Sequence[int], tokens: int) -> Continuation:
    """For a pool of processes, each of which loads the model once."""
    return reference(model).greedy(prompt, tokens)


def follow(model: Path, prompt: Sequence[int], answer: Sequence[int]) -> Continuation:
    return reference(model).follow(prompt, answer)


def vocabulary_size(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])
