"""Greedy token ids of `transformers` in float32 for the demo's prompts: the answers that the engine must give too.

`python -m e2e.demo.reference OUT` writes JSON: a list of [name, prompt ids, output ids]. A process of its own,
so that the demo itself never imports torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.traffic.plan import prompt_ids
from e2e.lib.models import smollm2
from e2e.lib.reference import Reference

QUESTION = "What is the capital of France? Answer in one sentence."
LENGTHS = (1, 15, 16, 17, 300)
"""Prompt lengths in tokens: one, around the edge of a KV block, and longer than a prefill chunk."""
NEW_TOKENS = 24


@dataclass(frozen=True)
class Case:
    """`prompt` and the ids that `transformers` continues it with (EOS ignored, but for the chat question)."""

    name: str
    prompt: tuple[int, ...]
    expected: tuple[int, ...]

    @property
    def chat(self) -> bool:
        return self.name == QUESTION


def read(path: Path) -> list[Case]:
    return [Case(name, tuple(prompt), tuple(expected)) for name, prompt, expected in json.loads(path.read_text())]


def main() -> int:
    out = Path(sys.argv[1])
    model = smollm2()
    from transformers import AutoTokenizer

    tokenizer, reference = AutoTokenizer.from_pretrained(model), Reference(model)
    messages = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    chat = tokenizer(text, add_special_tokens=False)["input_ids"]
    cases = [[QUESTION, chat, reference.greedy(chat, NEW_TOKENS, tokenizer.eos_token_id).token_ids]]
    for length in LENGTHS:
        prompt = list(prompt_ids(length, seed=length))
        cases.append([f"{length} random tokens", prompt, reference.greedy(prompt, NEW_TOKENS).token_ids])
        print(f"{length} tokens done", flush=True)
    out.write_text(json.dumps(cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
