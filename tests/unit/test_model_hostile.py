"""Folders that nobody means well with, or that broke in an odd way: one line with the file at fault, at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.model_folder import CONFIG, write_model

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields
from semipd_engine.cards.registry import parse_card
from semipd_engine.hub.check import refusal
from semipd_engine.hub.model_folder import INDEX

pytestmark = pytest.mark.unit

Damage = Callable[[Path], object]
NESTED = "[" * 200_000
CLAIM = {"dtype": "F32", "shape": [4, 8]}


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def link(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return damage


def directory(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def header(value: object) -> Damage:
    data = json.dumps(value).encode()
    return lambda folder: (folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)


def index(text: str) -> Damage:
    """In the place of the whole file, which would win."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / INDEX).write_text(text)

    return damage


def shard(name: str) -> Damage:
    return index(json.dumps({"weight_map": {"model.embed_tokens.weight": name}}))


def config(**changes: Any) -> Damage:
    return text("config.json", json.dumps(CONFIG | changes))


def experts_together(shape: list[int], dtype: str) -> Damage:
    """As many as fit, of 16 x 8 numbers each, and nothing of them in the file."""
    together = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    weights = header({"model.layers.0.mlp.experts.gate_up_proj": together})
    sizes = config(model_type="qwen3_moe", num_experts=1 << 16, num_experts_per_tok=2, moe_intermediate_size=8)
    return lambda folder: (sizes(folder), weights(folder))


DEEPSEEK = {"model_type": "deepseek_v3", "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}


HOSTILE: dict[str, tuple[Damage, str]] = {
    "a shard outside": (shard("../m/model.safetensors"), INDEX),
    "a shard anywhere": (shard("/etc/hostname"), INDEX),
    "a shard that is the folder": (shard("."), INDEX),
    "config without an end": (text("config.json", NESTED), "config.json"),
    "index without an end": (index(NESTED), INDEX),
    "tokenizer without an end": (text("tokenizer.json", NESTED), "tokenizer.json"),
    "its configuration without an end": (text("tokenizer_config.json", NESTED), "tokenizer_config.json"),
    "defaults without an end": (text("generation_config.json", NESTED), "generation_config.json"),
    "config in UTF-16": (lambda f: (f / "config.json").write_bytes(json.dumps(CONFIG).encode("utf-16")), "config.json"),
    "config is a folder": (directory("config.json"), "config.json"),
    "template is a folder": (directory("chat_template.jinja"), "chat_template.jinja"),
    "config is a link to itself": (link("config.json", "config.json"), "config.json"),
    "weights are a link to nowhere": (link("model.safetensors", "gone"), "model.safetensors"),
    "weights of another size": (header({"a": CLAIM | {"data_offsets": [0, 1 << 50]}}), "model.safetensors"),
    "weights before the file": (header({"a": CLAIM | {"data_offsets": [0, -128]}}), "model.safetensors"),
    "weights at no place": (header({"a": CLAIM | {"data_offsets": ["0", "1"]}}), "model.safetensors"),
    "weights' header is a list": (header([1]), "model.safetensors"),
    "a token of no kind": (text("tokenizer_config.json", '{"pad_token": 5}'), "tokenizer_config.json"),
    "sizes beyond int32": (config(vocab_size=10**30), "vocab_size"),
    "a context beyond int32": (config(max_position_embeddings=10**30), "max_position_embeddings"),
    "a thousand million layers": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "those of a window": (config(model_type="mistral", num_hidden_layers=10**9), "num_hidden_layers"),
    "experts": (config(model_type="qwen3_moe", num_experts=10**9, num_experts_per_tok=2), "experts"),
    "as many as fit, in each layer": (
        config(model_type="qwen3_moe", num_experts=1 << 16, num_experts_per_tok=2, num_hidden_layers=4096),
        "experts",
    ),
    **{
        f"as many, in one tensor of shape {shape} and format {dtype}": (
            experts_together(shape, dtype),
            "65536 experts in them, and the files have 1 tensors",
        )
        for shape, dtype in (([4, 0], "F32"), ([1 << 40, 0], "F32"), ([1 << 40, 16, 8], "F8_E8M0"))
    },
    "an infinite base": (
        text("config.json", json.dumps(CONFIG | {"rope_theta": 1e39}).replace("1e+39", "1e999")),
        "theta",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    damage, named = HOSTILE[name]
    damage(folder)
    said = refusal(folder)
    assert said and named in said and "\n" not in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0), ("query_pre_attn_scalar", 256)),
        *(
            ("logit_scale", 0.0625),
            ("logits_scaling", 8.0),
            ("embedding_multiplier", 12.0),
            ("attention_multiplier", 0.1),
        ),
        *(("residual_multiplier", 0.22), ("clip_qkv", 8.0), ("use_qk_norm", True), ("qk_layernorm", True)),
        *(("no_rope_layers", [1]), ("attention_chunk_size", 8192), ("hidden_activation", "gelu"), ("use_mrope", True)),
        *(("sliding_window", 4096), ("layer_types", ["sliding_attention"]), ("layer_types", "all")),
        *(("is_causal", False), ("use_bidirectional_attention", True), ("text_config", {"vocab_size": 7})),
        *(("transformers_weights", "other.safetensors"), ("per_layer_config", {"0": {}})),
    ],
)
def test_what_only_another_family_computes_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ModelError, match=field):
        parse_card(Fields(CONFIG | {field: value}, "config.json"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "layer_types": ["full_attention"]},
        {"model_type": "mistral", "sliding_window": None, "layer_types": ["sliding_attention"]},
        {"model_type": "mistral", "sliding_window": 1},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 1},
        {"model_type": "qwen3_moe", "layer_types": ["sliding_attention"]},
        {"model_type": "qwen2", "sliding_window": 64, "layer_types": ["sliding_attention"]},
        {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
        DEEPSEEK | {"sliding_window": 64},
        DEEPSEEK | {"layer_types": ["sliding_attention"]},
    ],
)
def test_windows_of_layers_that_the_family_has_not_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"sliding_window|layer_types"):
        parse_card(Fields(CONFIG | changes, "config.json"))


def test_values_that_change_nothing_are_read_over() -> None:
    neutral: dict[str, Any] = {"is_causal": True, "logit_scale": 1, "use_mrope": False, "layer_types": ["attention"]}
    neutral |= {"attn_logit_softcapping": None, "text_config": None}
    plain = parse_card(Fields(CONFIG, "config.json"))
    assert parse_card(Fields(CONFIG | neutral | {"hidden_act": "swish"}, "config.json")) == plain


def test_of_two_spellings_of_a_rotation_the_older_counts_and_an_original_length_beside_them_wins() -> None:
    """As in transformers 5."""
    linear, yarn = {"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    both = parse_card(Fields(CONFIG | {"rope_parameters": yarn, "rope_scaling": linear}, "config.json")).rope
    assert (both.kind, both.factor, both.theta) == ("linear", 2.0, 10000.0)
    assert parse_card(Fields(CONFIG | {"rope_parameters": yarn, "rope_scaling": {}}, "config.json")).rope.kind == "yarn"
    inside = yarn | {"original_max_position_embeddings": 128}
    for values, expected in (({}, 128), ({"original_max_position_embeddings": 64}, 64)):
        rope = parse_card(Fields(CONFIG | values | {"rope_parameters": inside}, "config.json")).rope
        assert rope.original_max_position_embeddings == expected
