"""llguidance as core and the judge of grammars both use it: the model's vocabulary, the parser's limits, its words.

What the judge lets through core compiles again, so both must ask for the same. Knows no requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import lru_cache
from os.path import commonprefix
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
    vocabulary = LLTokenizer(tokenizer.to_json(), vocab_size, list(ends))
    _special_texts(vocabulary)  # looks at each token: not while somebody waits
    return vocabulary


def new_matcher(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    """At the beginning. Never raises: a grammar that cannot be used leaves it in its error state."""
    from llguidance import LLMatcher
    from llguidance._lib import LLParserLimits

    limits = LLParserLimits(verbose_errors=False, step_max_items=MOST_ITEMS)
    return LLMatcher(vocabulary, _spelled(vocabulary, grammar), log_level=0, limits=limits)


@lru_cache(maxsize=4)
def _special_texts(vocabulary: LLTokenizer) -> re.Pattern[str] | None:
    """What special tokens look like; None where there are none."""
    special = filter(vocabulary.is_special_token, range(vocabulary.vocab_size))
    texts = {text for token in special if (text := vocabulary.decode_str([token])) and text != f"<[{token}]>"}
    return re.compile(any_of(texts)) if texts else None


def any_of(texts: Collection[str]) -> str:
    """A pattern of any of these, in which no two alternatives begin alike. Vocabularies have hundreds of special tokens
    with one beginning: of alternatives one after the other each is tried wherever a client writes that, for a second
    and more in a large grammar; and `re` holds the GIL, in core, too."""
    start = commonprefix(list(texts))  # noqa: RUF071  of texts, no paths
    rests = {text[len(start) :] for text in texts}
    if "" in rests:  # any that goes on begins with it
        return re.escape(start)
    alike = dict[str, list[str]]()
    for rest in sorted(rests):
        alike.setdefault(rest[0], []).append(rest)
    return f"{re.escape(start)}(?:{'|'.join(map(any_of, alike.values()))})"


def _spelled(vocabulary: LLTokenizer, grammar: str) -> str:
    """A grammar with text that looks like a special token: where nothing else may follow, llguidance would force that
    token, which ends the answer, or is not shown. So nothing is forced there; its letters stand for it."""
    texts = _special_texts(vocabulary)
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), grammar).replace("\\", "")
    if texts is None or not texts.search(plain):
        return grammar
    if grammar.startswith("{"):  # as llguidance writes schemas and regexes
        try:
            (only,) = json.loads(grammar)["grammars"]
            grammar = only["lark_grammar"] or f"start: %json {json.dumps(only['json_schema'])}"
        except (ValueError, KeyError, TypeError):  # it is a client's own: no text but what he says
            return grammar
    return f'%llguidance {{"no_forcing": true}}\n{grammar}'


def words(error: str) -> str:
    """An error without the parser's state, and not longer than people read."""
    text = error.partition("\n<")[0].strip()
    if len(text) <= LONGEST_WORDS:
        return text
    return f"{text[: LONGEST_WORDS // 2]} ... {text[-LONGEST_WORDS // 2 :]}"  # what it quotes is in the middle
