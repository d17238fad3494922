"""make-model and import-gguf: what they write is what `transformers` reads, and their tokenizers lose nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from e2e.lib import models
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import read_card
from semipd_engine.hub.import_gguf import import_gguf
from semipd_engine.hub.make_model import make_model

pytestmark = pytest.mark.engine

TEXTS = [
    "Hello world",
    "I have 12345 apples, it's 3.14!",
    "naïve café — 日本語 🙂\n\n  tabs\t x",
    "def f(x):\n    return x + 1",
    "<|im_start|>user\nhi<|im_end|>",
]


def gguf_folder() -> tuple[Path, str]:
    models.smollm2()
    path = next((models.cache_root() / "models").glob("*.gguf"))
    return path.parent, path.name


def test_every_id_of_a_random_model_decodes_to_text() -> None:
    model = models.random_model("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(model)
    size = read_card(model).vocab_size
    assert len(tokenizer) == size
    assert all(tokenizer.decode([token]) for token in range(size))
    assert [tokenizer.decode(tokenizer(text).input_ids) for text in TEXTS] == TEXTS
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_random_model_is_decided_by_its_seed(tmp_path: Path) -> None:
    weights = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_model("tiny", "qwen2", tmp_path / name, seed, progress=False)
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    assert all(torch.equal(tensor, weights["b"][name]) for name, tensor in weights["a"].items())
    assert not torch.equal(weights["a"]["lm_head.weight"], weights["c"]["lm_head.weight"])
    count = sum(tensor.numel() for tensor in weights["a"].values())
    assert 14e6 < count < 16e6
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_an_output_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "semipd_engine.hub.make_model", "--out", str(tmp_path)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "--out" in failed.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_imported_weights_equal_those_that_transformers_dequantises() -> None:
    folder, file = gguf_folder()
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).state_dict()
    ours = load_file(models.smollm2() / "model.safetensors")
    assert set(theirs) - set(ours) == {"lm_head.weight"}
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name].bfloat16(), rtol=0, atol=0)


def test_the_imported_tokenizer_equals_that_of_transformers() -> None:
    folder, file = gguf_folder()
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    ours = AutoTokenizer.from_pretrained(models.smollm2())
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids
        assert ours.decode(ours(text).input_ids) == text
    assert ours("12").input_ids == [ours.convert_tokens_to_ids(digit) for digit in "12"]


def test_the_import_writes_what_the_metadata_says() -> None:
    model = models.smollm2()
    config = read_card(model)
    assert (config.architecture, config.num_layers, config.hidden_size, config.head_dim) == ("llama", 30, 576, 64)
    assert (config.rope.theta, config.rms_norm_eps, config.tie_word_embeddings) == (100000.0, 1e-5, True)
    assert (config.max_position_embeddings, config.eos_token_ids, config.dtype) == (8192, (2,), "bfloat16")
    chat = AutoTokenizer.from_pretrained(model).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\n")
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no GGUF at all" * 100)
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        import_gguf(tmp_path / "broken.gguf", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="does not exist"):
        import_gguf(tmp_path / "missing.gguf", tmp_path / "out", progress=False)
