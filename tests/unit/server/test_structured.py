"""From fields to grammars: what is asked for, what is refused and with which words, and what the masks allow."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.unit.server.api_process import Api
from tests.unit.server.schema_corpus import corpus

from e2e.lib.waiting import wait_until
from semipd_engine.cards.guidance import any_of
from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.core.grammar import GrammarConstraint, Grammars
from semipd_engine.core.request import ConstraintError
from semipd_engine.server.errors import ApiError
from semipd_engine.server.structured import grammar_of

pytestmark = pytest.mark.unit

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer(model_dir)


def mask_of(constraint: GrammarConstraint, output: list[int]) -> bytes:
    """Asked until it is known."""
    return wait_until(lambda: constraint.mask(output), every_s=0.0002)


def answer(grammars: Grammars, tokenizer: Tokenizer, grammar: str, seed: int, most: int = 300) -> str | None:
    """By tokens drawn at random among the allowed ones; None where it does not end."""
    constraint, output, draw = grammars.constraint(grammar), list[int](), random.Random(seed)
    while len(output) < most:
        mask = mask_of(constraint, output)
        token = draw.choice([i for i in range(400) if mask[i // 8] >> i % 8 & 1])
        if token in (0, 2):
            return tokenizer.decode(output)
        output.append(token)
    return None


def json_of(schema: Any) -> str:
    return grammar_of({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}})


@pytest.mark.parametrize(
    "schema",
    [
        PERSON,
        {"enum": ["red", "green", 3, None]},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
        {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]$"},
        {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 7}, {"const": "no"}]},
        {
            "$defs": {"leaf": {"type": "object", "properties": {"v": {"type": "integer", "maximum": 9, "minimum": 0}}}},
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/leaf"}, "b": {"$ref": "#/$defs/leaf"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    ],
)
def test_what_ends_validates(grammars: Grammars, tokenizer: Tokenizer, schema: Any) -> None:
    ended = [text for seed in range(8) if (text := answer(grammars, tokenizer, json_of(schema), seed)) is not None]
    assert ended
    for text in ended:
        jsonschema.validate(json.loads(text), schema)


def test_a_part_of_the_corpus_is_accepted_ends_and_validates(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Tokens drawn at random; `make test-long` has all of it, through the processes."""
    part = corpus()[::5]
    accepted, ended = 0, 0
    for number, schema in enumerate(part):
        try:
            grammar = json_of(schema)
        except ApiError:
            continue
        accepted += 1
        text = answer(grammars, tokenizer, grammar, number, 2000)
        if text is not None:
            ended += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert accepted >= 0.9 * len(part) == 36 and ended >= 0.95 * accepted


def test_a_digit_of_a_regex_is_one_of_ten(grammars: Grammars, tokenizer: Tokenizer) -> None:
    asked, meant = (grammar_of({"guided_regex": regex}) for regex in (r"\d{9}\\d[\d]\D", r"[0-9]{9}\\d[[0-9]][^0-9]"))
    assert asked == meant
    text = answer(grammars, tokenizer, asked, 1)
    assert text is not None and text[:9].isascii() and text[:9].isdigit() and text[9:11] == r"\d"


def test_every_way_to_ask(grammars: Grammars, tokenizer: Tokenizer) -> None:
    ways: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
        ({"structured_outputs": {"choice": ["yes", 'no "x"', "größe"]}}, lambda t: t in ("yes", 'no "x"', "größe")),
        ({"guided_choice": ["yes"]}, lambda t: t == "yes"),
        ({"guided_choice": ["a\x7f", "\x01\t\n"]}, lambda t: t in ("a\x7f", "\x01\t\n")),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, lambda t: len(t) == 3 and t.isdigit()),
        ({"guided_regex": "ab?c"}, lambda t: t in ("ac", "abc")),
        ({"structured_outputs": {"grammar": 'start: "a" | "b" "c"'}}, lambda t: t in ("a", "bc")),
        ({"guided_grammar": 'root ::= "a" | "b" "c"'}, lambda t: t in ("a", "bc")),
        ({"guided_grammar": '?start: "a" | b\n!b: "c"'}, lambda t: t in ("a", "c")),
        ({"guided_grammar": '// of Lark\nstart: "root ::= a"'}, lambda t: t == "root ::= a"),
        ({"structured_outputs": {"json": json.dumps({"const": 5})}}, lambda t: json.loads(t) == 5),
        ({"guided_json": {"const": [1]}}, lambda t: json.loads(t) == [1]),
        (
            {"structured_outputs": {"json": {"const": {"a": 1}}, "disable_any_whitespace": True}},
            lambda t: t == '{"a":1}' or json.loads(t) == {"a": 1},
        ),
    ]
    for given, fits in ways:
        text = answer(grammars, tokenizer, grammar_of(given), 1)
        assert text is not None and fits(text), (given, text)
    assert grammar_of({"response_format": {"type": "text"}}) == ""
    assert "object" in grammar_of({"response_format": {"type": "json_object"}})
    assert grammar_of({"guided_json_object": False}) == ""


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"guided_json": {"type": "foo"}}, "guided_json", "Invalid type: foo"),
        ({"guided_json": {"not": {"const": 1}}}, "guided_json", 'Unimplemented keys: ["not"]'),
        ({"guided_json": "{"}, "guided_json", "cannot be used"),
        ({"guided_json": "3"}, "guided_json", "an object"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_choice": []}, "guided_choice", "list of strings"),
        ({"guided_choice": ["a", ""]}, "guided_choice", "neither"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "use one of"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", "leave all but one out"),
        ({"guided_json": False}, "guided_json", "Unsatisfiable"),
        ({"structured_outputs": {"json": False}}, "structured_outputs.json", "Unsatisfiable"),
        ({"structured_outputs": {"regex": False}}, "structured_outputs.regex", "string"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar", "GBNF"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern", "leave it out"),
        (
            {"structured_outputs": {"regex": "a", "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
            "leave it out",
        ),
        (
            {"structured_outputs": {"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
            "leave one of them out",
        ),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "leave it out"),
        ({"guided_whitespace_pattern": " ", "guided_regex": "a"}, "guided_whitespace_pattern", "leave it out"),
        *(
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": {}} | more}},
                f"response_format.json_schema.{next(iter(more))}",
                words,
            )
            for more, words in (
                ({"foo": 1}, "name, schema, strict"),
                ({"strict": "yes"}, "true or false"),
                ({"name": None}, "letters"),
                ({"name": 5}, "letters"),
                ({"name": "a b"}, "letters"),
                ({"description": 5}, "text"),
            )
        ),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema", "'json_schema'"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", "'json_object'"),
        ({"guided_json": {"enum": ["x" * 300_000]}}, "guided_json", "simplify"),
    ],
)
def test_what_cannot_be_held_is_refused_with_its_words(given: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        grammar_of(given)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert words in refused.value.message, refused.value.message


def test_the_state_is_rebuilt_from_the_tokens(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Whoever asks for a later, an earlier or the same output gets what one that was asked from the start says."""
    grammar = json_of(PERSON)
    output = tokenizer.encode('{"name": "a", "age": 12')
    followed, fresh = grammars.constraint(grammar), grammars.constraint(grammar)
    masks = [mask_of(followed, output[:i]) for i in range(len(output) + 1)]
    assert mask_of(fresh, output) == masks[-1] == mask_of(fresh, output)
    assert mask_of(fresh, output[:3]) == masks[3]


def test_an_impossible_output_ends_the_request(grammars: Grammars, tokenizer: Tokenizer) -> None:
    constraint = grammars.constraint(json_of(PERSON))
    with pytest.raises(ConstraintError, match="left its grammar"):
        mask_of(constraint, tokenizer.encode("nonsense"))


def test_a_compilation_that_waits_goes_with_its_request(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, go = list[str](), threading.Event()
    matcher = grammars.matcher

    def slow(grammar: str) -> Any:
        compiled.append(grammar)
        go.wait(60)
        return matcher(grammar)

    monkeypatch.setattr(grammars, "matcher", slow)
    first, gone, last = (grammars.constraint(json_of({"const": number})) for number in range(3))
    wait_until(lambda: compiled)
    gone.close()
    first.close()  # it has begun: it comes to its end, and harms nobody
    go.set()
    assert mask_of(last, [])
    assert compiled == [json_of({"const": 0}), json_of({"const": 2})]


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    woken = threading.Event()
    grammars = Grammars(tmp_path, woken.set)
    grammars.warm_up(400)
    with pytest.raises(ConstraintError, match="cannot be constrained"):
        mask_of(grammars.constraint(json_of(PERSON)), [])
    assert woken.is_set()


# ---- through the api ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_the_grammar_reaches_core(api: Api, chat: bool) -> None:
    ask = api.chat if chat else api.complete
    assert ask().status_code == 200 and api.core.added[-1].grammar == ""
    assert ask(n=2, response_format={"type": "json_object"}).status_code == 200
    assert {add.grammar for add in api.core.added[-2:]} == {grammar_of({"response_format": {"type": "json_object"}})}


def test_refusals_reach_the_client(api: Api) -> None:
    error = api.chat(structured_outputs={"json": {"type": "foo"}}).json()["error"]
    assert error["param"] == "structured_outputs.json" and "Invalid type: foo" in error["message"]
    for field, value in (("ignore_eos", True), ("min_tokens", 3)):
        refused = api.complete(guided_choice=["a"], **{field: value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert not api.core.added


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"guided_choice": ["<|im_end|>"]}, "<|im_end|>"),
        ({"guided_choice": ["<|im_start|>"]}, "<|im_start|>"),
        ({"guided_regex": r"a<\|im_end\|>b"}, "a<|im_end|>b"),
        ({"guided_grammar": 'root ::= "<|im_end|>" "."'}, "<|im_end|>."),
        ({"guided_json": {"const": "<|im_end|>"}}, '"<|im_end|>"'),
        ({"guided_json": json.dumps({"const": "<|im_end|>"}).replace("<", "\\u003c")}, '"<|im_end|>"'),
    ],
)
def test_text_that_looks_like_a_special_token_is_text(
    grammars: Grammars, tokenizer: Tokenizer, fields: Any, wanted: str
) -> None:
    """The token itself would end the answer, or not be shown."""
    for seed in range(3):
        assert answer(grammars, tokenizer, grammar_of(fields), seed) == wanted


def test_special_tokens_that_begin_alike_are_looked_for_once() -> None:
    """Of a thousand with one beginning each was tried wherever a grammar has that: for a second, with core's GIL."""
    assert any_of({"[a_1]", "[a_12]", "[b]", "</s>"}) == r"(?:</s>|\[(?:a_1(?:2\]|\])|b\]))"
    assert any_of({"<s>", "<s>x"}) == "<s>", "whoever has the longer one has the shorter"
    texts = {f"[control_{number}]" for number in range(0, 1000, 3)} | {"<s>", "</s>", "[INST]", "[/INST]"}
    pattern = re.compile(any_of(texts))
    for text in (*texts, "[control_1]", "[control_30", "control_3]", "<s", "[INST", "x"):
        assert bool(pattern.search(f"a{text}b")) == (text in texts)


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        (r"root ::= [\u0041-\u0042]", {"A", "B"}),
        (r"root ::= [\u005d\u005e]", {"]", "^"}),
        (r'root ::= "\u00e9\U0001F600\u0022"', {'é😀"'}),
        (r'root ::= "\[\]\\u0041"', {"[]\\u0041"}),
        (r"root ::= [\]x]", {"]", "x"}),
    ],
)
def test_gbnf_has_the_escapes_of_llama_cpp(
    grammars: Grammars, tokenizer: Tokenizer, grammar: str, texts: set[str]
) -> None:
    asked = grammar_of({"structured_outputs": {"grammar": grammar}})
    assert {answer(grammars, tokenizer, asked, seed) for seed in range(12)} == texts


def test_a_character_that_there_is_not_is_refused(api: Api) -> None:
    refused = api.complete(guided_grammar=r"root ::= [\U00110000]")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "guided_grammar")


def test_vllms_options_have_a_remedy_that_fits_or_none() -> None:
    asked = {"json": {"type": "object", "additionalProperties": False}}
    assert grammar_of({"structured_outputs": asked | {"_backend": "xgrammar"}})
    with pytest.raises(ApiError, match="additionalProperties: false"):
        grammar_of({"structured_outputs": asked | {"disable_additional_properties": True}})
