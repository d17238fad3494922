"""llguidance as core and the judge of grammars both use it: the model's vocabulary, the parser's limits, its words.

What the judge lets through core compiles again, so both must ask for the same. Knows no requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from semipd_engine.cards.model_card import load_model_card
from semipd_engine.cards.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LONGEST_WORDS = 500
"""Characters of llguidance's words that a client sees: they may quote all of a grammar."""

MOST_ITEMS = 10_000
"""Of the parser, for one mask: a fifth of llguidance's own limit, at which a mask takes 0.2 s and everybody's next one
waits for it. Masks of ordinary schemas take 3 ms at most."""


def read_vocabulary(model: Path, vocab_size: int) -> LLTokenizer:
    """A second of work. `vocab_size`: of the model; the tokenizer may know fewer. Raises whatever the libraries do."""
    from llguidance import LLTokenizer

    tokenizer = Tokenizer(model)
    ends = load_model_card(model).with_ends(tokenizer.id_of).eos_token_ids
    return LLTokenizer(tokenizer.to_json(), vocab_size, list(ends))


def new_matcher(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    """At the beginning. Never raises: a grammar that cannot be used leaves it in its error state."""
    from llguidance import LLMatcher
    from llguidance._lib import LLParserLimits

    limits = LLParserLimits(verbose_errors=False, step_max_items=MOST_ITEMS)
    return LLMatcher(vocabulary, grammar, log_level=0, limits=limits)


def words(error: str) -> str:
    """An error without the parser's state, and not longer than people read."""
    text = error.partition("\n<")[0].strip()
    if len(text) <= LONGEST_WORDS:
        return text
    return f"{text[: LONGEST_WORDS // 2]} ... {text[-LONGEST_WORDS // 2 :]}"  # what it quotes is in the middle
