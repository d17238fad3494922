"""What `transformers` answers in float32, greedily, with log-probabilities. It knows nothing of the project's engine.

`greedy` decodes step by step. `follow` needs one pass for a whole answer: with the answer as its input, the most
likely token at each place is the greedy one as long as all before it were, so an answer that equals `follow` everywhere
equals `greedy`, by induction, at a fraction of the cost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reference:
    token_ids: list[int]
    logprobs: list[float]
    """Of those tokens under the whole vocabulary, natural logarithm."""


def greedy(model: Path, prompt: Sequence[int], tokens: int) -> Reference:
    """`tokens` greedy tokens after `prompt`, the end-of-sequence token ignored."""
    import torch

    loaded, ids, logprobs = _load(model), [], []
    step, cached = torch.tensor([list(prompt)]), None
    with torch.inference_mode():
        for _ in range(tokens):
            output = loaded(step, past_key_values=cached, use_cache=True, logits_to_keep=1)
            cached = output.past_key_values
            best = output.logits[0, -1].float().log_softmax(-1).max(-1)
            ids.append(int(best.indices))
            logprobs.append(float(best.values))
            step = best.indices.view(1, 1)
    return Reference(ids, logprobs)


def follow(model: Path, prompt: Sequence[int], answer: Sequence[int]) -> Reference:
    """The most likely token at each place of `answer`, given the prompt and the answer before it."""
    import torch

    ids = torch.tensor([[*prompt, *answer[:-1]]])
    with torch.inference_mode():
        logits = _load(model)(ids, use_cache=False, logits_to_keep=len(answer)).logits[0].float()
    best = logits.log_softmax(-1).max(-1)
    return Reference(best.indices.tolist(), best.values.tolist())


def vocabulary_size(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


@cache
def _load(model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # the serving pod has the same cores
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
