"""A model directory without weights, a stand-in core, and the real api process between them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.server.api_process import Api, StartApi
from tests.unit.server.api_standin import StandInCore, counted
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_engine.core.grammar import Grammars
from semipd_engine.ipc.requests import ENGINE_ERROR

TEMPLATE = """\
{%- if tools %}<tools>{{ tools | tojson }}</tools>{% endif -%}
{%- for message in messages %}
{%- if message.role == 'bad' %}{{ raise_exception('role bad is not allowed') }}{% endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TEXT = (
    "The quick brown fox jumps over the lazy dog. Prefill reads the prompt, decode writes the answer, one token at a "
    "time. Größe, naïve, 東京, مرحبا, 🙂🚀 and other letters take more than one byte. "
)


def write_model(directory: Path) -> Path:
    """config, generation_config, tokenizer (byte-level BPE, 400 ids), chat template; no weights."""
    directory.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 400, "eos_token_id": 0}
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "top_k": 40}))
    special = {"eos_token": {"content": "<|im_end|>"}, "bos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE} | special))
    return directory


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "letters")


@pytest.fixture
def grammars(model_dir: Path) -> Grammars:
    """Of the model, for its 400 ids."""
    found = Grammars(model_dir, lambda: None)
    found.warm_up(400)
    return found


def start_api_process(model_dir: Path, run_dir: Path, flags: list[str]) -> Api:
    core = StandInCore(run_dir, vocab_size=400)
    core.start()
    command = [sys.executable, "-m", "semipd_engine.server", "--model", str(model_dir), "--run-dir", str(run_dir)]
    process = subprocess.Popen([*command, "--port", "0", *flags])
    port = run_dir / "api.port"
    wait_until(lambda: port.exists() or process.poll() is not None)
    url = f"http://127.0.0.1:{int(port.read_text())}"
    client = httpx.Client(base_url=url, timeout=PATIENCE_S)
    wait_until(lambda: client.get("/ready").status_code == 200)
    return Api(process, url, core, client, run_dir)


@pytest.fixture(scope="session")
def start_api_in(model_dir: Path) -> Callable[[Path, list[str]], Api]:
    return partial(start_api_process, model_dir)


def stop_api(api: Api) -> None:
    api.process.kill()
    api.process.wait()
    api.client.close()
    api.core.close()


@pytest.fixture
def start_api(start_api_in: Any, tmp_path: Path) -> Iterator[StartApi]:
    """Start api processes with flags of the test's own."""
    running: list[Api] = []

    def start(*flags: str) -> Api:
        run_dir = tmp_path / f"run{len(running)}"
        run_dir.mkdir()
        running.append(start_api_in(run_dir, list(flags)))
        return running[-1]

    yield start
    for api in running:
        stop_api(api)


@pytest.fixture(scope="module")
def shared_api(start_api_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    api = start_api_in(tmp_path_factory.mktemp("run"), [])
    yield api
    stop_api(api)


@pytest.fixture
def api(shared_api: Api) -> Api:
    """One api process for a whole module; the stand-in core is as new for each test."""
    core = shared_api.core
    core.answer = counted(3, 390)
    core.seconds_per_token, core.tokens_per_output, core.hold, core.error = 0.0, 1, False, None
    core.steps, core.error_code = None, ENGINE_ERROR
    for heard in (core.added, core.aborted, core.rejected):
        heard.clear()
    return shared_api


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_dir / "tokenizer.json"))
