"""Odd tokenizer files: ids and texts are those of transformers, and a file at fault is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.model_folder import write, write_model
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from semipd_engine.cards.model_card import load_model_card
from semipd_engine.cards.tokenizer import Tokenizer, TokenizerError
from semipd_engine.hub.check import refusal
from semipd_engine.ipc.requests import RequestOutput
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.server.sequence import Sequence, TextOptions

pytestmark = pytest.mark.unit


@pytest.fixture
def llama2(tmp_path: Path) -> Path:
    """Words with a mark for the blank before them, bytes for the rest; the decoder strips the first blank."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁cat", "s", "▁", "<|end|>"]
    tokenizer = RustTokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    folder = write_model(tmp_path / "m")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_blank_of_a_first_word_stays(llama2: Path) -> None:
    tokenizer = Tokenizer(llama2)
    the, cat, s = (tokenizer.id_of(word) for word in ("▁the", "▁cat", "s"))
    assert the is not None and cat is not None and s is not None
    answer = Sequence(0, [1], Sampling(max_tokens=9), TextOptions(), tokenizer)
    deltas = [answer.push(RequestOutput("k", [one])).text for one in (the, cat, s)]
    assert deltas == [" the", " cat", "s"]
    assert [tokenizer.text([one]) for one in (the, s)] == [" the", "s"]  # as logprobs show them
    assert tokenizer.decode_long([the, cat]) == "the cat"  # a whole text: as transformers decodes it
    cake = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in "🎂".encode()]
    whole = Sequence(0, [1], Sampling(max_tokens=9), TextOptions(), tokenizer)
    assert "".join(whole.push(RequestOutput("k", [one])).text for one in [*cake, the] if one is not None) == "🎂 the"


def test_tokens_of_the_configuration_are_added_as_transformers_adds_them(llama2: Path) -> None:
    listed = {
        "264": {"content": "<|tool|>", "special": False, "normalized": False},
        "263": {"content": "<|end|>", "special": True},
        "2": {"content": "</s>", "special": True},
    }
    extra = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "added_tokens_decoder": listed}
    write(llama2, "tokenizer_config.json", **extra, tokenizer_class="PreTrainedTokenizerFast")
    theirs = PreTrainedTokenizerFast.from_pretrained(llama2)
    ours = Tokenizer(llama2)
    for token in ("<|tool|>", "<|end|>", "</s>", "<pad>", "<unk>"):
        number = theirs.convert_tokens_to_ids(token)
        assert ours.id_of(token) == number
        assert ours.encode(f"the{token}the", False) == theirs(f"the{token}the", add_special_tokens=False).input_ids
        assert ours.keeps(number, True) == bool(theirs.decode([number], skip_special_tokens=True)), token


def test_older_files_name_and_add_tokens_where_the_configuration_lists_none(llama2: Path) -> None:
    """special_tokens_map.json and added_tokens.json, as transformers reads them."""
    write(llama2, "tokenizer_config.json", eos_token="</s>", image_token="<image>", tokenizer_class="TokenizersBackend")
    write(llama2, "special_tokens_map.json", eos_token="<|end|>", pad_token={"content": "<pad>", "lstrip": True})
    (llama2 / "added_tokens.json").write_text(json.dumps({"<|tool|>": 265, "<|new|>": 264, "<pad>": 266}))
    for listed in (False, True):
        if listed:
            token = {"content": "<|new|>", "special": False}
            write(llama2, "tokenizer_config.json", added_tokens_decoder={"264": token}, pad_token="<|new|>")
            (llama2 / "added_tokens.json").write_text("[1]")  # is not read then
        theirs, ours = PreTrainedTokenizerFast.from_pretrained(llama2), Tokenizer(llama2)
        for token in ("<|tool|>", "<|new|>", "<pad>", "<image>", "<|end|>", "</s>"):
            text = f"the{token}the {token}"
            assert ours.encode(text, False) == theirs(text, add_special_tokens=False).input_ids, token
            number = theirs.convert_tokens_to_ids(token)
            if number is not None and number == ours.id_of(token):
                assert ours.keeps(number, True) == bool(theirs.decode([number], skip_special_tokens=True)), token
        names = load_model_card(llama2).special_tokens
        assert (names["eos_token"], names["pad_token"]) == (theirs.eos_token, theirs.pad_token)
        assert names["eos_token"] == ("</s>" if listed else "<|end|>")


def test_a_field_that_is_called_a_token_and_names_none_is_read_over(llama2: Path) -> None:
    values: dict[str, Any] = {"hub_token": {"from": "here"}, "of_token": [1], "no_token": {}, "image_token": "<image>"}
    write(llama2, "tokenizer_config.json", **values, tokenizer_class="TokenizersBackend")
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(llama2), Tokenizer(llama2)
    assert ours.encode("the<image>", False) == theirs("the<image>", add_special_tokens=False).input_ids
    assert refusal(llama2) is None


def test_a_tokenizer_blames_the_file_at_fault(llama2: Path) -> None:
    (llama2 / "config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"/config\.json is not JSON"):
        Tokenizer(llama2)


@pytest.mark.parametrize("named_in", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("byte_level", [False, True])
def test_special_tokens_that_no_file_names_are_those_of_the_class(
    byte_level: bool, architecture: str, named_in: str, llama2: Path
) -> None:
    """Where transformers builds it: not of Mistral's models, nor where the file is byte-level."""
    steps = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}}
    write(llama2, "tokenizer.json", added_tokens=[], **steps if byte_level else {})
    write(llama2, "config.json", model_type=architecture)
    write(llama2, named_in, tokenizer_class="LlamaTokenizerFast")
    ours, theirs = Tokenizer(llama2), AutoTokenizer.from_pretrained(llama2)
    names = ("unk_token", "bos_token", "eos_token")
    expected = {name: token for name in names if (token := getattr(theirs, name)) is not None}
    assert bool(expected) == (architecture != "mistral" and not byte_level)
    assert load_model_card(llama2).special_tokens == expected
    assert ours.encode("<s>the</s>", False) == theirs("<s>the</s>", add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "described",
    [
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": "LlamaTokenizer", "legacy": True},
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
        {"tokenizer_class": "TokenizersBackend"},
        {"tokenizer_class": "LlamaTokenizer", "split_special_tokens": True},
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_blanks_are_marked_as_the_class_marks_them(described: dict[str, Any], architecture: str, llama2: Path) -> None:
    """Not as older files do: transformers 5 builds Llama's tokenizers anew, but not those of Mistral."""
    tokenizer = RustTokenizer.from_file(str(llama2 / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.save(str(llama2 / "tokenizer.json"))
    write(llama2, "config.json", model_type=architecture)
    write(llama2, "tokenizer_config.json", **described)
    ours, theirs = Tokenizer(llama2), AutoTokenizer.from_pretrained(llama2)
    for text in ("the cat", " the", "<s>the</s> cat", "the  \n 🎂", ""):
        ids = ours.encode(text, False)
        assert ids == theirs(text, add_special_tokens=False).input_ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


def test_ids_without_a_token_have_no_text(llama2: Path) -> None:
    """A vocabulary that is padded beyond the tokenizer: a model may sample what stands for nothing."""
    tokenizer = Tokenizer(llama2)
    the = tokenizer.id_of("▁the")
    assert the is not None and not tokenizer.keeps(9999, False)
    answer = Sequence(0, [1], Sampling(max_tokens=9), TextOptions(), tokenizer)
    assert answer.push(RequestOutput("k", [9999, the, 9999])).text == " the"
    assert (tokenizer.text([9999]), tokenizer.token_bytes(9999)) == ("", b"")
