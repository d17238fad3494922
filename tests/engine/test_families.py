"""The exactness matrix on the families beyond the dense ones, with models of two layers.

Lengths around block, chunk and window edges and beyond the original rotary length; through real processes across prefix
hits, preemptions, a changing split and the death of each worker. And FP8 blocks: the numbers that they stand for.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.harness import TORCH_RESIDENT, Engine
from tests.engine.model_driver import Driver, assert_equal_to_reference, greedy, random_prompt
from tests.engine.test_batch_invariance import Budget
from tests.engine.test_model_config import CONFIGS, save

from e2e.lib.reference import reference
from e2e.lib.waiting import wait_until
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import FAMILIES, read_card
from semipd_engine.contract import DType, EngineOptions, Phase, SetPartition, Split
from semipd_engine.cpu_plan import cpu_plan
from semipd_engine.hub.make_model import make_model
from semipd_engine.kernels import ReferenceKernels, choose
from semipd_engine.model.checkpoint import dequantised
from semipd_engine.model.loader import load_weights

pytestmark = pytest.mark.engine
NEW = ["mistral-window", "qwen3_moe-mixed", "deepseek_v2-groups", "deepseek_v3-yarn"]
EDGES = (1, 15, 16, 17, 39, 40, 41, 47, 48, 49, 63, 64, 65, 79, 81, 130)
TOKENS = 40


@pytest.fixture(scope="module", params=NEW)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CONFIGS[request.param], tmp_path_factory.mktemp("family") / request.param)


def test_edges_mixed_and_a_prefix_that_is_not_computed_again(model: Path) -> None:
    driver = Driver(model)
    requests = [driver.request(random_prompt(length, 300, length), greedy(9)) for length in EDGES]
    driver.generate(requests, chunk_tokens=48)
    again = driver.request([*requests[-1].prompt[:96], 7, 8], greedy(9), requests[-1].block_table[:6])
    driver.generate([again])
    assert_equal_to_reference(model, [*requests, again])


@pytest.mark.skipif(choose("cpu").name == "reference", reason="no compiled kernels here: see `make venv`")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_is_the_same_alone_in_a_crowd_cut_and_recomputed(model: Path, dtype: torch.dtype) -> None:
    lengths = (1, 41, 64, 130)
    prompts = [random_prompt(length, 300, length) for length in lengths]
    alone = []
    for prompt in prompts:
        driver = Driver(model, dtype, num_blocks=16)
        request = driver.request(prompt, greedy(12))
        driver.generate([request], max_steps=12)
        alone.append((request.tokens, request.logprobs))
    crowd = Driver(model, dtype, pacer=Budget(1e-6, 1e-5, 1e9), seed=2, num_blocks=64)
    requests = [
        crowd.request(prompt, greedy(12)) for prompt in [*prompts, *(random_prompt(9, 300, i) for i in range(9))]
    ]
    try:
        torch.set_num_threads(2)
        crowd.generate(requests, chunk_tokens=24, max_steps=3)
    finally:
        torch.set_num_threads(1)
    assert [(request.tokens, request.logprobs) for request in requests[: len(prompts)]] == alone
    again = Driver(model, dtype, pacer=Budget(1e-5), seed=3, num_blocks=64)
    for (tokens, logprobs), prompt in zip(alone, prompts, strict=True):
        recomputed = again.request([*prompt, *tokens[:6]], greedy(6))
        again.generate([recomputed], chunk_tokens=32)
        assert (recomputed.tokens, recomputed.logprobs) == (tokens[6:], logprobs[6:])


def test_processes_prefixes_preemptions_splits_and_deaths(model: Path, tmp_path: Path) -> None:
    blocks = 40  # of the hundred that all streams together would fill
    options = EngineOptions(
        model=model,
        run_dir=tmp_path,
        step_log=tmp_path / "steps.jsonl",
        dtype=DType.FLOAT32,
        max_model_len=256,
        kv_cache_memory=blocks * read_card(model).kv_layout(16, 4).block_bytes,
        prefill_chunk_tokens=48,
    )
    engine = Engine(options, TORCH_RESIDENT)
    try:
        engine.wait_state(seconds=300)
        client = engine.client()
        shared = random_prompt(48, 300, 99)
        client.add(shared, 2).wait(120)
        stopped = engine.worker(Phase.DECODE).pid
        os.kill(stopped, signal.SIGSTOP)  # until so many prompts are done that their outputs cannot all have blocks
        streams = [
            client.add((shared if index % 3 == 0 else []) + random_prompt(length, 300, length), TOKENS, logprobs=0)
            for index, length in enumerate(EDGES)
        ]
        try:
            wait_until(lambda: engine.snapshot().decoding >= 9, describe="nine prompts")
        finally:
            os.kill(stopped, signal.SIGCONT)
        for epoch, (phase, (x, y)) in enumerate(zip(Phase, ((80, 20), (30, 70)), strict=True), start=1):
            plan = cpu_plan(Split(prefill=x, decode=y), sorted(os.sched_getaffinity(0)))
            engine.control(SetPartition(split_epoch=epoch, plan=plan))
            done = sum(len(stream.tokens) for stream in streams)
            wait_until(lambda done=done: sum(len(stream.tokens) for stream in streams) > done, describe="tokens")
            killed = engine.kill_worker(phase)
            wait_until(
                lambda phase=phase, killed=killed: engine.worker(phase).pid not in (0, killed), describe="a new worker"
            )
            time.sleep(0.05)
        for stream in streams:
            assert stream.wait(120).error is None
            tokens, scores = reference(model).follow(stream.prompt, stream.tokens)
            assert stream.tokens == tokens, f"prompt of {len(stream.prompt)} tokens"
            assert max(abs(a - b) for a, b in zip(stream.logprobs, scores, strict=True)) < 1e-4
        assert any(stream.cached_tokens for stream in streams)
        assert sum(stream.preemptions for stream in streams) > 0
    finally:
        engine.stop()


def test_the_cache_of_a_latent_model_holds_one_vector_for_all_heads(tmp_path: Path) -> None:
    layout = read_card(save(CONFIGS["deepseek_v3"], tmp_path)).kv_layout(16, 4)
    assert layout.token_bytes == 2 * (32 + 16) * 4


@pytest.mark.parametrize("architecture", [name for name in FAMILIES if name not in ("llama", "qwen2", "qwen3")])
def test_make_model_writes_what_transformers_reads(architecture: str, tmp_path: Path) -> None:
    """Also beyond the original length of a stretched rotation, and of a window."""
    make_model("tiny", architecture, tmp_path / "m", progress=False)
    driver = Driver(tmp_path / "m", num_blocks=64)
    request = driver.request(random_prompt(600, 4096, 1), greedy(4))
    driver.generate([request], chunk_tokens=256)
    assert_equal_to_reference(tmp_path / "m", [request])
    assert len(set(request.tokens)) > 1


def quantised(model: Path, block: int) -> None:
    """Projections of the folder become FP8 with a scale for each block, as V3's checkpoints have them; the numbers that
    they stand for are left in the folder ``plain`` beside it."""
    plain = model.with_name("plain")
    plain.mkdir()
    tensors, dense = load_file(model / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        dense[name] = tensor
        if not name.endswith("proj.weight") and "kv_a_proj" not in name:
            continue
        rows, columns = (-(-size // block) for size in tensor.shape)
        padded = torch.zeros(rows * block, columns * block)
        padded[: tensor.shape[0], : tensor.shape[1]] = tensor
        cells = padded.view(rows, block, columns, block)
        scale = cells.abs().amax((1, 3)).clamp(min=1e-6) / 448
        packed = (cells / scale[:, None, :, None]).view_as(padded)[: tensor.shape[0], : tensor.shape[1]]
        tensors[name] = packed.to(torch.float8_e4m3fn).contiguous()
        tensors[f"{name}_scale_inv"] = scale
        whole = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)
        dense[name] = tensors[name].float() * whole[: tensor.shape[0], : tensor.shape[1]]
    values = json.loads((model / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(values))
    save_file(dense, plain / "model.safetensors", {"format": "pt"})
    values["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [block, block]}
    (model / "config.json").write_text(json.dumps(values))
    tensors["model.layers.2.embed_tokens.weight"] = torch.zeros(300, 64)  # of a layer that predicts further tokens
    save_file(tensors, model / "model.safetensors")


def test_fp8_blocks_are_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    model = save(CONFIGS["deepseek_v3"], tmp_path / "fp8")
    quantised(model, 24)
    driver = Driver(model, num_blocks=32)
    requests = [driver.request(random_prompt(length, 300, length), greedy(8)) for length in (3, 70)]
    driver.generate(requests, chunk_tokens=32)
    assert_equal_to_reference(tmp_path / "plain", requests)


def test_fp8_blocks_are_rounded_once() -> None:
    """Blocks of unequal sides, the last ones cut."""
    generator = torch.Generator().manual_seed(1)
    packed = torch.randn(50, 70, generator=generator).mul(100).to(torch.float8_e4m3fn)
    scale = torch.rand(4, 3, generator=generator) / 100
    expected = torch.tensor(
        [[float(packed[i, j]) * float(scale[i // 16, j // 24]) for j in range(70)] for i in range(50)]
    )
    assert torch.equal(dequantised(packed, scale, (16, 24), torch.bfloat16), expected.bfloat16())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method"),
        ({"quantization_config": {"quant_method": "fp8"}}, "weight_block_size"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"topk_group": 5}, "topk_group"),
        ({"kv_lora_rank": "32"}, "kv_lora_rank"),
    ],
)
def test_what_a_deepseek_model_cannot_mean_is_refused(change: dict[str, object], named: str, tmp_path: Path) -> None:
    CONFIGS["deepseek_v3"].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=named):
        read_card(tmp_path)


def test_a_scale_that_is_missing_is_named(tmp_path: Path) -> None:
    model = save(CONFIGS["deepseek_v3"], tmp_path / "fp8")
    quantised(model, 24)
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv"
    del tensors[name]
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ModelError, match=name):
        load_weights(read_card(model), model, torch.float32, ReferenceKernels())
