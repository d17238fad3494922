"""Detokenisation and stop strings: for every stream of tokens and every way of cutting it into outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.ipc.requests import RequestOutput
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.server.detokenizer import Detokenizer, StopStrings
from semipd_engine.server.sequence import Sequence, TextOptions

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def byte_level(model_dir: Path) -> Tokenizer:
    return Tokenizer(model_dir)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Like Llama 2: pieces with a word mark, bytes for the rest, the first space stripped."""
    tokenizer = RustTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special[:3])
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"], trainer)
    source = json.loads(tokenizer.to_str())
    vocab = source["model"]["vocab"]
    for piece in special[3:]:
        vocab.setdefault(piece, len(vocab))
    directory = tmp_path_factory.mktemp("fallback")
    (directory / "tokenizer.json").write_text(json.dumps(source))
    return Tokenizer(directory)


def run(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip_special: bool) -> str:
    detokenizer, text, rest = (
        Detokenizer(tokenizer.text, tokenizer.byte_of),
        "",
        [i for i in ids if tokenizer.keeps(i, skip_special)],
    )
    for cut in cuts:
        text += detokenizer.push(rest[:cut])
        rest = rest[cut:]
    for token_id in rest:
        text += detokenizer.push([token_id])
    return text + detokenizer.flush()


CUTS = st.lists(st.integers(1, 9), max_size=20)


@given(ids=st.lists(st.integers(0, 420), max_size=90), cuts=CUTS, skip_special=st.booleans())
@settings(max_examples=400)
def test_deltas_join_to_the_full_decode(
    byte_level: Tokenizer, ids: list[int], cuts: list[int], skip_special: bool
) -> None:
    assert run(byte_level, ids, cuts, skip_special) == byte_level.decode(ids, skip_special_tokens=skip_special)


@given(data=st.binary(max_size=120), cuts=CUTS)
@settings(max_examples=400)
def test_any_bytes_join_to_the_full_decode(byte_level: Tokenizer, data: bytes, cuts: list[int]) -> None:
    """One token for each byte: the worst stream for UTF-8, with and without valid characters in it."""
    by_byte = {byte_level.token_bytes(token_id): token_id for token_id in range(3, 400)}
    ids = [by_byte[bytes([byte])] for byte in data]
    assert run(byte_level, ids, cuts, True) == data.decode(errors="replace")


@given(ids=st.lists(st.integers(0, 420), max_size=60), cuts=CUTS)
@settings(max_examples=400)
def test_deltas_join_to_the_full_decode_with_byte_fallback(
    byte_fallback: Tokenizer, ids: list[int], cuts: list[int]
) -> None:
    """As a text that has begun decodes: the blank before its first word stays."""
    kept = [token_id for token_id in ids if byte_fallback.keeps(token_id, True)]
    text = b"".join(map(byte_fallback.token_bytes, kept)).decode(errors="replace")
    assert run(byte_fallback, ids, cuts, True) == text
    if "\ufffd" not in text:  # in the library one bad byte spoils its whole run
        begun = [byte_fallback.id_of("▁the"), *ids]
        expected = byte_fallback.decode([one for one in begun if one is not None], skip_special_tokens=True)
        assert text == expected.removeprefix("the")


def bytes_of(byte_fallback: Tokenizer, data: bytes) -> list[int]:
    """Each byte as the token that stands for it."""
    ids = {byte_fallback.piece(token_id): token_id for token_id in range(700)}
    return [ids[f"<0x{byte:02X}>"] for byte in data]


def test_a_byte_that_is_a_character_does_not_wait(byte_fallback: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_fallback.text, byte_fallback.byte_of)
    newline, *emoji = bytes_of(byte_fallback, "\n🤗".encode())
    assert [detokenizer.push([i]) for i in (newline, *emoji)] == ["\n", "", "", "", "🤗"]


def test_offsets_index_the_text(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    """Pieces of one character share its offset; what never becomes one counts as the U+FFFD that is shown for it."""
    pieces = {byte_level.token_bytes(token_id): token_id for token_id in range(3, 400)}
    data = [*(bytes([byte]) for byte in "a🤗".encode()), b" ", b"\xff", b"\xff", b"b"]
    for tokenizer, ids in (
        (byte_level, [pieces[piece] for piece in data]),
        (byte_fallback, bytes_of(byte_fallback, b"".join(data))),
    ):
        detokenizer = Detokenizer(tokenizer.text, tokenizer.byte_of)
        pushed = [detokenizer.push_one([token_id]) for token_id in ids]
        assert [offset for _, offset in pushed] == [0, 1, 1, 1, 1, 2, 3, 4, 5]
        assert "".join(text for text, _ in pushed) + detokenizer.flush() == "a🤗 \ufffd\ufffdb"


def test_offsets_of_a_prompt_do_not_count_what_the_tokenizer_puts_before_it(byte_fallback: Tokenizer) -> None:
    """The blank of the first word, and a token of the beginning."""
    ids = byte_fallback.encode("the quick fox")
    begin = byte_fallback.id_of("<s>")
    assert begin is not None
    for literal, prompt in ((True, ids), (False, ids), (True, [begin, *ids]), (False, [begin, *ids])):
        sequence = Sequence(0, prompt, Sampling(), TextOptions(), byte_fallback)
        offsets = sequence.prompt_offsets("the quick fox", literal, special=False)
        names = [byte_fallback.text([token_id]) for token_id in ids]
        assert offsets[-len(ids) :] == [max(0, len("".join(names[:i])) - 1) for i in range(len(ids))]


@pytest.mark.parametrize("around", ["<s> $A </s>", "$A </s>", "<s> $A", "<s> <s> $A </s>", "$A"])
@pytest.mark.parametrize("text", ["the quick fox", "</s>the<s>", "<s>", "a"])
def test_offsets_of_a_prompt_do_not_count_what_the_tokenizer_puts_around_it(
    byte_fallback: Tokenizer, tmp_path: Path, around: str, text: str
) -> None:
    """Where the text itself has such tokens, these count."""
    rust = RustTokenizer.from_str(byte_fallback.to_json())
    rust.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    rust.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    before, behind = around.partition("$A")[0].count("<s>"), around.count("</s>")
    assert tokenizer.affixes == (before, behind)
    for special in (True, False):
        ids = tokenizer.encode(text, special)
        offsets = Sequence(0, ids, Sampling(), TextOptions(), tokenizer).prompt_offsets(text, True, special)
        first, last = (before, behind) if special else (0, 0)
        own = ids[first : len(ids) - last]
        plain = Sequence(0, own, Sampling(), TextOptions(), tokenizer).prompt_offsets(text, True, special=False)
        assert offsets == [0] * first + plain + [len(text)] * last
        if "<" not in text:
            names = [tokenizer.text([one]) for one in own]
            names[0] = names[0].removeprefix(" ")
            assert [text[offset : offset + len(name)] for offset, name in zip(plain, names, strict=True)] == names


def test_characters_come_whole_and_at_once(byte_level: Tokenizer) -> None:
    """A character of four tokens comes with its fourth; the text before it does not wait for it."""
    by_byte = {byte_level.token_bytes(token_id): token_id for token_id in range(3, 400)}
    detokenizer = Detokenizer(byte_level.text, byte_level.byte_of)
    deltas = [detokenizer.push([by_byte[bytes([byte])]]) for byte in "a🙂b".encode()]
    assert deltas == ["a", "", "", "", "🙂", "b"]


def test_long_invalid_stream_costs_linear_time(byte_level: Tokenizer) -> None:
    by_byte = {byte_level.token_bytes(token_id): token_id for token_id in range(3, 400)}
    decoded = 0

    def decode(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return byte_level.decode(ids)

    detokenizer = Detokenizer(decode, lambda token_id: None)
    text = "".join(detokenizer.push([by_byte[b"\xff"]]) for _ in range(2000)) + detokenizer.flush()
    assert text == "\ufffd" * 2000
    assert decoded < 2000 * 200


def test_token_bytes_join_to_the_text(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    text = "Größe 東京 🙂"
    assert b"".join(map(byte_level.token_bytes, byte_level.encode(text))) == text.encode()
    assert b"".join(map(byte_fallback.token_bytes, byte_fallback.encode("the 🙂"))) == " the 🙂".encode()


# ---- stop strings ------------------------------------------------------------------------------------------------


def reference_stop(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Character by character: the first prefix of the text that ends with a stop string."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            stop = max(matches, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
)
@settings(max_examples=500)
def test_stop_strings_across_borders(pieces: list[str], stops: list[str], include: bool) -> None:
    checker, shown = StopStrings(stops, include), ""
    for piece in pieces:
        shown += checker.push(piece)
        if checker.matched:
            break
    else:
        shown += checker.flush()
    assert (shown, checker.matched) == reference_stop("".join(pieces), stops, include)


@pytest.mark.parametrize("stops", [["x" * 200], ["\n\n", "END", "x" * 200], [f"stop{i}" for i in range(100)]])
def test_only_what_may_begin_a_stop_is_held(stops: list[str]) -> None:
    text, checker = "The quick brown fo and so on, " * 20, StopStrings(stops)
    for i, character in enumerate(text):
        shown = checker.push(character)
        assert shown or any(stop.startswith(text[i - k : i + 1]) for stop in stops for k in range(5))
    assert checker.push("x" * 199) == "" or "x" * 200 not in stops
    assert checker.matched is None


def sequence(tokenizer: Tokenizer, options: TextOptions, **sampling: object) -> Sequence:
    return Sequence(0, [1], Sampling(max_tokens=99, **sampling), options, tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_tokens_after_a_stop_string_are_dropped(byte_level: Tokenizer, batch: int) -> None:
    ids = byte_level.encode("The quick brown fox jumps over")
    stopping = sequence(byte_level, TextOptions(stop=("wn fo",)))
    text, tokens = "", []
    for start in range(0, len(ids), batch):
        delta = stopping.push(RequestOutput("k", ids[start : start + batch]))
        text, tokens = text + delta.text, tokens + delta.token_ids
        if delta.finish_reason:
            break
    assert (text, delta.finish_reason, delta.stop_reason) == ("The quick bro", "stop", "wn fo")
    assert byte_level.decode(tokens[:-1]).find("wn fo") == -1 < byte_level.decode(tokens).find("wn fo")
    assert stopping.output_tokens == len(tokens)


def test_a_stop_string_before_min_tokens_does_not_count(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("fox fox fox")
    stopping = sequence(byte_level, TextOptions(stop=("fox",)), min_tokens=len(byte_level.encode("fox")))
    delta = stopping.push(RequestOutput("k", ids))
    assert (delta.text, delta.finish_reason) == ("fox ", "stop")


@pytest.mark.parametrize(("include", "text"), [(False, "The quick"), (True, "The quick brown")])
def test_a_stop_id_is_counted_and_shown_only_on_request(byte_level: Tokenizer, include: bool, text: str) -> None:
    ids = byte_level.encode("The quick") + (last := byte_level.encode(" brown"))
    stopping = sequence(byte_level, TextOptions(include_stop=include), stop_token_ids=(last[-1],))
    delta = stopping.push(RequestOutput("k", ids, finish_reason="stop"))
    assert delta.text == byte_level.decode(ids if include else ids[:-1])
    assert (delta.stop_reason, stopping.output_tokens) == (last[-1], len(ids))


def test_end_of_sequence_has_no_stop_reason(byte_level: Tokenizer) -> None:
    options = TextOptions(eos_token_ids=frozenset({2}))
    delta = sequence(byte_level, options, stop_token_ids=(2,)).push(RequestOutput("k", [50, 2], finish_reason="stop"))
    assert (delta.finish_reason, delta.stop_reason, delta.token_ids) == ("stop", None, [50, 2])
