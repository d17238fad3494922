"""Weights and KV in shared mappings: sharded and single files, strict loading, one copy that every mapping sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.model_driver import Driver, assert_equal_to_reference, greedy, random_prompt
from tests.engine.test_model_config import SIZES, save
from transformers import LlamaConfig

from e2e.lib import models
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import read_card
from semipd_engine.contract import Device, DType, EngineOptions
from semipd_engine.kernels import ReferenceKernels
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.memory.layout import KVComponent, KVLayout
from semipd_engine.memory.region import Region
from semipd_engine.model.loader import dummy_weights, load_weights
from semipd_engine.resident import loading

pytestmark = pytest.mark.engine


def load(model: Path, dtype: torch.dtype = torch.float32) -> WeightArena:
    return load_weights(read_card(model), model, dtype, ReferenceKernels())


def test_shards_equal_a_single_file(tmp_path: Path) -> None:
    single = save(LlamaConfig(**SIZES), tmp_path / "single")
    sharded = save(LlamaConfig(**SIZES), tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    first, second = load(single), load(sharded)
    assert first.manifest == second.manifest
    for entry in first.manifest:
        torch.testing.assert_close(first[entry.name], second[entry.name], rtol=0, atol=0)


def test_progress_grows_to_one_hundred(tmp_path: Path) -> None:
    model = save(LlamaConfig(**SIZES), tmp_path)
    seen: list[int] = []
    load_weights(read_card(model), model, torch.bfloat16, ReferenceKernels(), seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == 100


def test_weights_that_cannot_fit_are_refused_with_their_size_before_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(LlamaConfig(**SIZES), tmp_path)
    seen: list[int] = []
    options = EngineOptions(model=model, device=Device.CPU, dtype=DType.FLOAT32, kv_cache_memory=3 << 20)
    needed = loading.load(options, seen.append).weight_bytes + (3 << 20)
    monkeypatch.setattr(loading, "claimable_memory", lambda: needed)
    loading.load(options, seen.append)
    monkeypatch.setattr(loading, "claimable_memory", lambda: needed - 1)
    seen.clear()
    with pytest.raises(ModelError, match=r"raise the memory limit .* by at least 1 MiB") as refused:
        loading.load(options, seen.append)
    assert refused.value.reason == "OutOfMemory" and seen == []


def test_a_pool_that_holds_no_sequence_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    model = save(LlamaConfig(**SIZES), tmp_path)
    seen: list[int] = []
    with pytest.raises(ModelError, match="raise it to that") as refused:
        loading.load(EngineOptions(model=model, device=Device.CPU, kv_cache_memory=64), seen.append)
    assert (refused.value.reason, refused.value.may_pass, seen) == ("OutOfMemory", False, [])


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    tied = load(save(LlamaConfig(**SIZES, tie_word_embeddings=True), tmp_path / "tied"))
    untied = load(save(LlamaConfig(**SIZES), tmp_path / "untied"))
    assert untied.nbytes - tied.nbytes == SIZES["vocab_size"] * SIZES["hidden_size"] * 4


def test_another_mapping_of_the_descriptor_changes_the_tokens() -> None:
    driver = Driver(models.random_model("llama"))
    prompt = random_prompt(20, driver.config.vocab_size, 1)
    before, after = driver.request(prompt, greedy(12)), driver.request(prompt, greedy(12))
    driver.generate([before])
    assert os.fstat(driver.arena.region.fd).st_size == driver.arena.nbytes
    other = WeightArena(Region.map(driver.arena.region.fd, driver.arena.nbytes), driver.arena.manifest)
    other["layers.3.down.weight"].zero_()
    driver.generate([after])
    assert after.tokens != before.tokens


def test_another_mapping_of_the_pool_changes_decode() -> None:
    driver = Driver(models.random_model("llama"))
    prompt = random_prompt(40, driver.config.vocab_size, 2)
    requests = [driver.request(prompt, greedy(12)) for _ in range(2)]
    driver.prefill(requests)
    other = KVPool(
        driver.kv.layout, driver.kv.num_blocks, Region.map(driver.kv.region.fd, driver.kv.nbytes), torch.float32
    )
    for layer in range(driver.config.num_layers):
        other.layer(layer)[1][requests[1].block_table[0]] = 0
    while any(not r.done for r in requests):
        driver.decode(requests, 8)
    assert requests[0].tokens != requests[1].tokens


def test_a_latent_width_fits_the_pool() -> None:
    layout = KVLayout(2, (KVComponent("latent", 512 + 64), KVComponent("index", 8)), block_size=4, itemsize=2)
    pool = KVPool.create(layout, 5, torch.bfloat16)
    views = [view for layer in range(2) for view in pool.layer(layer)]
    for value, view in enumerate(views, start=1):
        view.fill_(value)
    assert [tuple(view.shape) for view in views[:2]] == [(5, 4, 576), (5, 4, 8)]
    assert all(bool((view == value).all()) for value, view in enumerate(views, start=1))
    assert os.fstat(pool.region.fd).st_size == layout.pool_bytes(5) == sum(view.numel() * 2 for view in views)


@pytest.mark.parametrize(
    "reason",
    ["MissingTensors", "UnexpectedTensor", "ShapeMismatch", "InvalidCheckpoint", "UnsupportedDtype", "NotFinite"],
)
def test_a_wrong_checkpoint_is_refused(reason: str, tmp_path: Path) -> None:
    model = save(LlamaConfig(**SIZES), tmp_path)
    path = model / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.self_attn.q_proj.weight"
    match reason:
        case "MissingTensors":
            del tensors[name]
        case "UnexpectedTensor":
            tensors[name.replace("weight", "bias")] = torch.zeros(64)
            name = name.replace("weight", "bias")
        case "ShapeMismatch":
            tensors[name] = tensors[name][:-1].clone()
        case "UnsupportedDtype":
            tensors[name] = tensors[name].to(torch.int8)
        case "NotFinite":
            tensors[name][3, 5] = float("nan")
    save_file(tensors, path)
    if reason == "InvalidCheckpoint":
        path.write_bytes(path.read_bytes()[:1000])
        name = "model.safetensors"
    with pytest.raises(ModelError, match=name) as error:
        load(model)
    assert error.value.reason == reason


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = save(LlamaConfig(**SIZES), tmp_path, max_shard_size="100KB")
    shard = sorted(set(json.loads((model / "model.safetensors.index.json").read_text())["weight_map"].values()))[0]
    (model / shard).unlink()
    with pytest.raises(ModelError, match=shard):
        load(model)


def test_a_shard_that_the_index_names_wrongly_is_found(tmp_path: Path) -> None:
    """As `transformers` reads it: what counts is what the files hold."""
    model = save(LlamaConfig(**SIZES), tmp_path / "right", max_shard_size="100KB")
    right = load(model)
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = list(index["weight_map"].values())
    index["weight_map"] = dict(zip(index["weight_map"], [*shards[1:], shards[0]], strict=True))
    path.write_text(json.dumps(index))
    for name, tensor in load(model).tensors().items():
        assert torch.equal(tensor, right[name])


@pytest.mark.parametrize("alike", [True, False])
def test_an_output_layer_beside_tied_embeddings_counts_where_it_differs(alike: bool, tmp_path: Path) -> None:
    model = save(LlamaConfig(**SIZES, tie_word_embeddings=True), tmp_path)
    tensors = load_file(model / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone() if alike else embedding.flip(0).contiguous()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    driver = Driver(model, num_blocks=32)
    assert driver.config.tie_word_embeddings == alike
    request = driver.request(random_prompt(20, 300, 1), greedy(8))
    driver.generate([request])
    assert_equal_to_reference(model, [request])


def test_dummy_weights_have_the_models_shapes_and_give_finite_numbers(tmp_path: Path) -> None:
    """No checkpoint is read: the folder has a config.json and nothing else."""
    whole = models.random_model("qwen3")
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    config = read_card(tmp_path)
    arena, again = (dummy_weights(config, torch.float32, ReferenceKernels()) for _ in range(2))
    assert arena.manifest == load(whole).manifest
    for name, tensor in arena.tensors().items():
        assert torch.isfinite(tensor).all() and torch.equal(tensor, again[name])
        if tensor.dim() > 1:
            assert 0.9 < float(tensor.std()) * tensor.shape[-1] ** 0.5 < 1.1, name
