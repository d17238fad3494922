"""A byte-level BPE tokenizer trained on the text that the package ships, with exactly the size that a model wants."""

from __future__ import annotations

import json
from importlib import resources
from itertools import islice, product

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(vocab_size: int) -> Tokenizer:
    """Tokens 0, 1, 2 are `SPECIAL_TOKENS`. Every id below `vocab_size` decodes to text.

    The text gives fewer merges than a large vocabulary has ids. The rest are pairs of learnt tokens: no merge leads to
    them, so encoding never uses them, but a model that samples one gets words and not a hole.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    text = resources.files("semipd_engine.hub").joinpath("data/corpus.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return _filled(tokenizer, vocab_size)


def _filled(trained: Tokenizer, vocab_size: int) -> Tokenizer:

    model = json.loads(trained.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    words = [token for token in vocabulary if token.startswith("Ġ") and len(token) > 3]
    pairs = (first + second for first, second in product(words, words) if first + second not in vocabulary)
    vocabulary.update(
        {token: len(vocabulary) + i for i, token in enumerate(islice(pairs, vocab_size - len(vocabulary)))}
    )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge) for merge in model["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer
