"""Odd but legal model folders: read as `transformers` reads them, or refused with the name of the field."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.unit.model_folder import CONFIG, write, write_model
from tokenizers import Tokenizer as RustTokenizer

from semipd_engine.cards.chat_template import ChatTemplates
from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields
from semipd_engine.cards.model_card import load_model_card
from semipd_engine.cards.registry import parse_card
from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.hub.check import refusal
from semipd_engine.server.params import resolve
from semipd_engine.server.protocol import CompletionRequest

pytestmark = pytest.mark.unit


def card(**changes: Any) -> ModelConfig:
    return parse_card(Fields(CONFIG | changes, "config.json"))


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
