"""Core, which compiles a client's grammar once more: its room for one, what it keeps, and its parser's limits."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher
from tests.unit.server.test_grammar_trial import chain
from tests.unit.server.test_structured import mask_of

from semipd_engine.core.grammar import Grammars
from semipd_engine.core.request import ConstraintError
from semipd_engine.ipc.requests import GRAMMAR_LIMIT

pytestmark = pytest.mark.unit


def test_core_has_room_for_more_than_the_trial(grammars: Grammars) -> None:
    """A thread's usual stack, of which the trial's child has as much, ends at some 1,100."""
    constraint = grammars.constraint(LLMatcher.grammar_from_json_schema(json.dumps(chain(2500))))
    assert mask_of(constraint, [])


def test_core_keeps_as_many_as_have_so_many_characters(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semipd_engine.core.grammar.KEPT_CHARACTERS", 1000)
    asked = [LLMatcher.grammar_from_lark(f'start: "{chr(97 + k) * 300}"') for k in range(9)]
    for grammar in asked:
        assert mask_of(grammars.constraint(grammar), [])
    assert list(grammars._compiled) == asked[-3:]
    large = LLMatcher.grammar_from_lark(f'start: "{"x" * 2000}"')
    assert mask_of(grammars.constraint(large), []) and list(grammars._compiled) == [large]


def test_the_parsers_limits_are_the_grammars_and_tell_nothing_else(grammars: Grammars) -> None:
    constraint = grammars.constraint(LLMatcher.grammar_from_lark('start: "a" start'))
    mask = mask_of(constraint, [])
    (letter,) = [i for i in range(400) if mask[i // 8] >> i % 8 & 1]
    with pytest.raises(ConstraintError, match=r"after 1 tokens nothing can follow.*Too many items") as stuck:
        mask_of(constraint, [letter])
    assert stuck.value.code == GRAMMAR_LIMIT and "\n" not in str(stuck.value)
