"""Odd but legal model folders: read as `transformers` reads them, or refused with the name of the field."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.unit.model_folder import CONFIG, write_model
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from semipd_engine.cards.chat_template import ChatTemplates
from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields
from semipd_engine.cards.model_card import load_model_card
from semipd_engine.cards.registry import parse_card
from semipd_engine.cards.tokenizer import Tokenizer, TokenizerError
from semipd_engine.hub.check import refusal
from semipd_engine.ipc.requests import RequestOutput
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.server.params import resolve
from semipd_engine.server.protocol import CompletionRequest
from semipd_engine.server.sequence import Sequence, TextOptions

pytestmark = pytest.mark.unit


def card(**changes: Any) -> ModelConfig:
    return parse_card(Fields(CONFIG | changes, "config.json"))


def write(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))


# ---- config.json -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        *("partial_rotary_factor", "rope_scaling", "head_dim", "num_key_value_heads", "attention_bias", "hidden_act"),
        *("quantization_config", "eos_token_id", "bos_token_id", "rope_theta", "tie_word_embeddings", "torch_dtype"),
    ],
)
def test_null_counts_as_absent(field: str) -> None:
    absent = {name: value for name, value in CONFIG.items() if name != field}
    assert card(**{field: None}) == parse_card(Fields(absent, "config.json"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": "4"}, "vocab_size is '4'"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0, "mscale_all_dim": 1.0}}, "mscale_all_dim"),
        ({"eos_token_id": ["3"]}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"rope_scaling": {"factor": 4.0}}, "factor and no rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "dynamic"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"rope_parameters": {"rope_theta": 1e4}, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "mistral", "sliding_window": "200"}, "sliding_window"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "x"}, "max_window_layers"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked_attention"]}, "layer_types"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        card(**changes)


def test_a_type_may_be_absent_where_nothing_needs_it() -> None:
    assert card(rope_parameters={"rope_theta": 5e5}).rope.theta == 5e5
    assert card(rope_scaling={"type": "default", "factor": 4.0}).rope == card().rope  # named: as transformers has it
    assert card(rope_scaling={"type": "dynamic", "factor": 4.0}).rope == card().rope  # within the model's limit


def test_windows_are_of_the_layers_that_the_configuration_names() -> None:
    def windows(**changes: Any) -> list[int]:
        config = card(num_hidden_layers=3, **changes)
        return [config.window(layer) for layer in range(3)]

    assert windows(model_type="mistral") == [4096] * 3
    assert windows(model_type="mistral", sliding_window=None) == [0] * 3
    qwen = {"model_type": "qwen2", "sliding_window": 20}
    assert windows(**qwen) == [0] * 3
    assert windows(**qwen, use_sliding_window=True, max_window_layers=2) == [0, 0, 20]
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(**qwen, use_sliding_window=True, max_window_layers=2, layer_types=kinds) == [20, 0, 20]
    assert windows(**qwen, use_sliding_window=True, max_window_layers=10**12) == [0] * 3
    assert windows(**qwen, use_sliding_window=True, max_window_layers=-1) == [20] * 3


def test_what_a_family_takes_for_absent_is_its_own() -> None:
    def sizes(architecture: str, **changes: Any) -> tuple[int, int]:
        values = {
            name: value for name, value in CONFIG.items() if "num_key_value" not in name and "max_pos" not in name
        }
        found = parse_card(Fields(values | {"model_type": architecture, "num_attention_heads": 64} | changes, "c"))
        return found.num_kv_heads, found.max_position_embeddings

    big = {"hidden_size": 256}
    assert sizes("llama", **big) == (64, 2048)
    assert sizes("mistral", **big) == (8, 131072)
    assert sizes("mistral", **big, num_key_value_heads=None) == (64, 131072)
    assert sizes("qwen2", **big) == sizes("qwen3", **big) == (32, 32768)
    assert sizes("qwen3_moe", **big) == (4, 32768)


def test_a_dtype_may_be_named_as_torch_names_it() -> None:
    assert card(torch_dtype="torch.bfloat16").dtype == "bfloat16"


def test_a_whole_file_wins_over_an_index_beside_it(tmp_path: Path) -> None:
    """As transformers reads them: the index may be of another save."""
    folder = write_model(tmp_path / "m")
    write(folder, "model.safetensors.index.json", weight_map={"model.norm.weight": "gone.safetensors"})
    assert refusal(folder) is None


# ---- what the api reads ------------------------------------------------------------------------------------------


def ends(folder: Path) -> tuple[int, ...]:
    return load_model_card(folder).with_ends(Tokenizer(folder).id_of).eos_token_ids


def test_an_end_token_is_known_wherever_it_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    assert ends(folder) == (3,)
    write(folder, "config.json", eos_token_id=None)
    assert ends(folder) == ()
    write(folder, "tokenizer_config.json", eos_token="a")
    assert ends(folder) == (1,)
    write(folder, "tokenizer_config.json", eos_token={"content": "</s>"})
    assert ends(folder) == (3,)
    write(folder, "config.json", eos_token_id=[1])
    assert ends(folder) == (1, 3)
    write(folder, "generation_config.json", eos_token_id=[2])
    assert ends(folder) == (2, 3)


def test_the_turn_end_of_the_template_ends_an_answer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    tokenizer = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "config.json", vocab_size=6)
    assert ends(folder) == (3,)
    write(folder, "tokenizer_config.json", chat_template="{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    assert ends(folder) == (3, 5)
    write(folder, "config.json", vocab_size=5)  # no embedding, so the model cannot write it
    assert ends(folder) == (3,)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"temperature": "0.6"}, {"temperature": 0.6}),
        ({"top_k": "40", "max_new_tokens": 9.0}, {"top_k": 40, "max_new_tokens": 9}),
        ({"temperature": "hot"}, {}),
        ({"temperature": [0.6], "top_p": {}, "min_p": True}, {}),
        ({"temperature": -1, "top_p": 1.5, "top_k": 2.5, "max_new_tokens": 0}, {}),
        ({"repetition_penalty": 0, "temperature": float("nan")}, {}),
        ({"top_p": 0}, {"top_p": 0.0}),
        ({"temperature": None}, {}),
    ],
)
def test_defaults_are_read_or_ignored_with_a_warning(
    given: dict[str, Any], kept: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model(tmp_path / "m")
    write(folder, "generation_config.json", **given)
    with caplog.at_level(logging.WARNING):
        model = load_model_card(folder)
    assert {name: value for name, value in vars(model.defaults).items() if value is not None} == kept
    for name in given.keys() - kept.keys():
        assert given[name] is None or f"generation_config.json: {name}" in caplog.text
    sampling = resolve(CompletionRequest(prompt="x", max_tokens=3), 1, model, 64)
    assert (sampling.temperature, sampling.repetition_penalty) == (kept.get("temperature", 1.0), 1.0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", json.dumps(CONFIG | {"max_position_embeddings": "long"})),
        ("generation_config.json", '{"eos_token_id": ["x"]}'),
        ("generation_config.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("special_tokens_map.json", "{"),
        ("added_tokens.json", '{"<new>": '),
        ("added_tokens.json", "[1]"),
        ("added_tokens.json", '{"<new>": "4"}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": null}]}'),
        ("chat_template.jinja", b"\xff\xfe"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "model-9.safetensors"}}'),
    ],
)
def test_a_broken_file_is_named(name: str, content: str | bytes, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    if name == "model.safetensors.index.json":  # the whole file would win
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refusal(folder)
    assert said and ("model-9.safetensors" if "model-9" in str(content) else name) in said and "\n" not in said


def test_weights_under_another_name_are_refused_as_the_loader_would(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    said = refusal(folder)
    assert said and "neither model.safetensors nor model.safetensors.index.json" in said


# ---- templates ---------------------------------------------------------------------------------------------------

PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
EITHER = "{% for m in messages %}{% if m.content is string %}s:{{ m.content }}{% else %}l:{{ m.content }}{% endif %}{% endfor %}"  # noqa: E501


def test_a_template_gets_content_as_it_reads_it() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert ChatTemplates({"default": PARTS}, {}).render(messages) == "<system>be brief<user>hi"
    assert ChatTemplates({"default": EITHER}, {}).render(messages) == "s:be briefs:hi"
    templates = ChatTemplates({"default": "{{ messages[1].content }}", "tool_use": PARTS}, {})
    assert templates.render(messages) == "hi"
    assert templates.render(messages, [{"type": "function"}]).endswith("<user>hi")
    assert ChatTemplates({"default": PARTS}, {}).render(messages, continue_final_message=True).endswith("hi")
    calls: list[dict[str, Any]] = [*messages, {"role": "assistant", "content": None, "tool_calls": []}]
    assert "None" not in ChatTemplates({"default": PARTS.replace("m.content", "m.content or []")}, {}).render(calls)


@pytest.mark.parametrize(
    "value", [[{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}], {"default": "a", "rag": "b"}]
)
def test_templates_may_be_named(value: Any, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    write(folder, "tokenizer_config.json", chat_template=value)
    assert load_model_card(folder).chat_templates == {"default": "a", "rag": "b"}
    (folder / "chat_template.jinja").write_text("c")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("d")
    assert load_model_card(folder).chat_templates == {"default": "c", "tool_use": "d"}


# ---- tokenizers --------------------------------------------------------------------------------------------------


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
