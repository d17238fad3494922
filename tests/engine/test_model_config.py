"""config.json in both spellings, rotary scaling and unusual sizes against `transformers`; refusals name the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.model_driver import Driver, assert_equal_to_reference, greedy, random_prompt
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import parse_card, read_card
from semipd_engine.hub.check import weights_refusal
from semipd_engine.kernels import ReferenceKernels
from semipd_engine.model.layers.rotary import inverse_frequencies
from semipd_engine.model.loader import load_weights

pytestmark = pytest.mark.engine

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "eos_token_id": [5, 6],
    "pad_token_id": None,
    "bos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
MIXTURE: dict[str, Any] = {
    "head_dim": 32,
    "moe_intermediate_size": 40,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
}
LATENT: dict[str, Any] = {
    **SIZES | {"num_key_value_heads": 4},
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
}
DEEP_YARN = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama-head-dim": LlamaConfig(**SIZES, head_dim=48, tie_word_embeddings=True),
    "llama-linear": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
    "llama-dynamic": LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}),
    "llama-llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "qwen2-tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-yarn": Qwen2Config(**SIZES, rope_parameters=YARN),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "qwen3-biases": Qwen3Config(**SIZES, head_dim=16, attention_bias=True),
    "deepseek_v2-lite": DeepseekV2Config(**LATENT, q_lora_rank=None, num_experts_per_tok=3, n_shared_experts=2),
    "deepseek_v2-groups": DeepseekV2Config(
        **LATENT,
        q_lora_rank=24,
        num_experts_per_tok=3,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
        rope_parameters=dict(DEEP_YARN),
    ),
    "deepseek_v3": DeepseekV3Config(**LATENT, q_lora_rank=24, num_experts_per_tok=3, n_group=4, topk_group=2),
    "deepseek_v3-yarn": DeepseekV3Config(
        **LATENT,
        q_lora_rank=24,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        rope_parameters=dict(DEEP_YARN),
        rope_interleave=False,
        attention_bias=True,
    ),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **MIXTURE),
    "qwen3_moe-mixed": Qwen3MoeConfig(
        **SIZES, **MIXTURE | {"norm_topk_prob": False}, mlp_only_layers=[0], use_sliding_window=True, sliding_window=40
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral-window": MistralConfig(**SIZES, sliding_window=40),
    "mistral-tied-head-dim": MistralConfig(**SIZES, sliding_window=20, head_dim=48, tie_word_embeddings=True),
    "qwen3-window": Qwen3Config(
        **SIZES, head_dim=32, use_sliding_window=True, sliding_window=20, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen3_moe-one-expert": Qwen3MoeConfig(**SIZES, **MIXTURE | {"num_experts_per_tok": 1}, attention_bias=True),
    "deepseek_v2-linear": DeepseekV2Config(
        **LATENT,
        q_lora_rank=24,
        num_experts_per_tok=3,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    ),
    "deepseek_v3-one-group": DeepseekV3Config(
        **LATENT, q_lora_rank=None, num_experts_per_tok=3, n_group=1, topk_group=1, norm_topk_prob=False
    ),
    "qwen2-window": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=20, max_window_layers=1),
}


def save(config: PreTrainedConfig, directory: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") or "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            torch.nn.init.uniform_(buffer, -0.3, 0.3)
    model.save_pretrained(directory, **options)
    return directory


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    model = save(CONFIGS[name], tmp_path / name)
    driver = Driver(model, num_blocks=32)
    requests = [driver.request(random_prompt(length, 300, length), greedy(10)) for length in (1, 31, 130)]
    driver.generate(requests, chunk_tokens=50)
    assert_equal_to_reference(model, requests)
    assert driver.config.eos_token_ids == (5, 6)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_spellings_mean_the_same(name: str, tmp_path: Path) -> None:
    CONFIGS[name].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    modern = read_card(tmp_path)
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    values["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    values["torch_dtype"] = values.pop("dtype", None) or "float32"
    path.write_text(json.dumps(values))
    assert read_card(tmp_path) == modern


ABSENT = object()
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "null is no truncation": ("llama", {"rope_parameters": YARN | {"factor": 3.7, "truncate": None}}),
    "a length as 64.0": ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64.0}}),
    "null is no order of pairs": ("deepseek_v3", {"rope_interleave": None}),
    "null is no norm of weights": ("deepseek_v3", {"norm_topk_prob": None}),
    "V2 has one order of pairs": ("deepseek_v2-groups", {"rope_interleave": False}),
    "V2's experts by another name": ("deepseek_v2-lite", {"n_routed_experts": ABSENT, "num_experts": 8}),
    "V3's experts by another name": ("deepseek_v3", {"n_routed_experts": ABSENT, "num_local_experts": 8}),
    "of V2's two names the other counts": ("deepseek_v2-lite", {"n_routed_experts": 16, "num_experts": 8}),
    "of V3's two names the other counts": ("deepseek_v3", {"n_routed_experts": 16, "num_local_experts": 8}),
    "an older name of full attention": ("qwen2-window", {"layer_types": ["attention", "sliding_attention"]}),
    "no size that no layer has": ("qwen3_moe", {"intermediate_size": ABSENT}),
}
"""A configuration and what is changed in its file."""


@pytest.mark.parametrize("name", ODD)
def test_odd_values_mean_what_they_mean_to_transformers(name: str, tmp_path: Path) -> None:
    base, changes = ODD[name]
    model = save(CONFIGS[base], tmp_path / "m")
    path = model / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ABSENT}))
    answer_as_transformers(model)


def answer_as_transformers(model: Path) -> None:
    """And be judged so before anything is loaded."""
    (model / "tokenizer.json").write_text("{}")
    assert weights_refusal(model) is None
    driver = Driver(model, num_blocks=32)
    requests = [driver.request(random_prompt(length, 300, length), greedy(6)) for length in (31, 130)]
    driver.generate(requests, chunk_tokens=50)
    assert_equal_to_reference(model, requests)


def head_alone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}


def base_model(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def caches(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {
        f"model.layers.0.self_attn.rotary_emb.{name}": torch.ones(4) for name in ("inv_freq", "sin_cached")
    }


@pytest.mark.parametrize(
    ("name", "spell"),
    [("qwen2-tied", head_alone), ("qwen2-tied", base_model), ("mistral-tied-head-dim", base_model), ("llama", caches)],
)
def test_a_checkpoint_may_spell_its_tensors_otherwise(
    name: str, spell: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model = save(CONFIGS[name], tmp_path / "m")
    tensors = spell(load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()  # its mapping is still read
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    answer_as_transformers(model)


@pytest.mark.parametrize("name", ["qwen3_moe-mixed", "deepseek_v2-lite", "deepseek_v3"])
def test_experts_may_lie_together(name: str, tmp_path: Path) -> None:
    """As transformers 5 holds them, and writes them where it is told to."""
    model = save(CONFIGS[name], tmp_path / "m", save_original_format=False)
    assert any(name.endswith("experts.gate_up_proj") for name in load_file(model / "model.safetensors"))
    answer_as_transformers(model)


def test_a_whole_file_wins_over_an_index_beside_it(tmp_path: Path) -> None:
    model = save(CONFIGS["llama"], tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, model / "old.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys(tensors, "old.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    answer_as_transformers(model)


def test_frequencies_of_llama3_and_yarn_equal_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for parameters in (
        LLAMA3,
        YARN,
        YARN | {"factor": 3.3},
        YARN | {"factor": 40.0},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1, "truncate": False},
    ):
        config = LlamaConfig(**SIZES, head_dim=64, rope_parameters=dict(parameters))
        expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
        from semipd_engine.cards.fields import Fields

        frequencies, ours = inverse_frequencies(parse_card(Fields(config.to_dict(), "config.json")).rope, 64)
        torch.testing.assert_close(frequencies, expected, rtol=0, atol=0)
        assert ours == pytest.approx(factor)


def test_generation_config_wins(tmp_path: Path) -> None:
    MistralConfig(**{**SIZES, "eos_token_id": 9}, sliding_window=64).save_pretrained(tmp_path)
    assert read_card(tmp_path).eos_token_ids == (9,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    config = read_card(tmp_path)
    assert config.eos_token_ids == (2, 3)
    assert config.max_position_embeddings == 256


@pytest.mark.parametrize(
    ("change", "reason", "named"),
    [
        ({"model_type": "gemma2"}, "UnsupportedArchitecture", "model_type"),
        ({"hidden_act": "gelu"}, "UnsupportedFeature", "hidden_act"),
        ({"quantization_config": {"quant_method": "fp8"}}, "UnsupportedFeature", "quantization_config"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "UnsupportedRopeScaling", "rope_type"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "InvalidConfig", "low_freq_factor"),
        ({"hidden_size": "big"}, "InvalidConfig", "hidden_size"),
        ({"num_key_value_heads": 3}, "InvalidConfig", "num_key_value_heads"),
        ({"dtype": "int4"}, "UnsupportedDtype", "dtype"),
    ],
)
def test_refusals_name_the_field(change: dict[str, Any], reason: str, named: str, tmp_path: Path) -> None:
    LlamaConfig(**SIZES).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=named) as error:
        read_card(tmp_path)
    assert error.value.reason == reason


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        read_card(tmp_path)
    LlamaConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.safetensors does not exist"):
        load_weights(read_card(tmp_path), tmp_path, torch.float32, ReferenceKernels())


def test_an_index_may_name_the_wrong_shards_but_no_tensor_lies_in_two(tmp_path: Path) -> None:
    """As transformers reads them: all shards, whatever the index says of each tensor."""
    model = save(LlamaConfig(**SIZES), tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names, shards = list(index["weight_map"]), sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    index["weight_map"] = {name: shards[number % len(shards)] for number, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    driver = Driver(model, num_blocks=32)
    request = driver.request(random_prompt(31, 300, 1), greedy(5))
    driver.generate([request])
    assert_equal_to_reference(model, [request])
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / shards[0]).read_bytes())
    index["weight_map"][names[0]] = "copy.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"is in copy\.safetensors, too"):
        load_weights(read_card(model), model, torch.float32, ReferenceKernels())
