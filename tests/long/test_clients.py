"""Clients of others against the whole engine: an evaluation harness, vLLM's benchmark, and the fields that vLLM knows.

They come from the package index into environments of their own, kept beside the other caches: their requirements and
ours need not agree.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.served import Served, serve

from bench.cpu.environments import VLLM, Environment, make
from e2e.lib.models import smollm2
from semipd_engine.server import fields
from semipd_engine.server.protocol import ChatRequest, CompletionRequest

pytestmark = pytest.mark.long

TASKS = Path(__file__).with_name("evaluation")
LM_EVAL = Environment(
    "lm-eval", ("lm_eval[api]==0.4.13", "transformers==5.23.0", "torch==2.13.0", "accelerate==1.15.0")
)
PATIENCE = 500


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("run"), smollm2(), "--max-model-len", "2048")


def evaluate(folder: Path, backend: str, /, **arguments: object) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Scores by task, and the answers to each document in their order."""
    words = ["--tasks", "semipd_facts,semipd_continue", "--include_path", str(TASKS), "--log_samples"]
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = [str(LM_EVAL.program("lm_eval")), "run", "--model", backend, "--model_args", given, *words]
    here = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    here["CUDA_VISIBLE_DEVICES"] = ""  # its own backend computes where ours does
    out = folder / backend
    done = subprocess.run(
        [*command, "--output_path", str(out)], cwd=TASKS, env=os.environ | here, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
    samples = {}
    for task in ("semipd_facts", "semipd_continue"):
        lines = next(out.rglob(f"samples_{task}_*.jsonl")).read_text().splitlines()
        samples[task] = [each["resps"] for each in sorted(map(json.loads, lines), key=lambda each: each["doc_id"])]
    scores = {
        f"{task}/{name}": value
        for task, found in results.items()
        for name, value in found.items()
        if "," in name and "stderr" not in name
    }
    return scores, samples


def test_an_evaluation_harness_scores_us_as_it_scores_transformers(
    served: Served, tmp_path: Path, record_property: Any
) -> None:
    """The same tasks through our endpoint and through its own backend: log-likelihoods by echo, greedy continuations.
    It tokenises through us, too."""
    make(LM_EVAL)
    ours, answers = evaluate(
        tmp_path, "local-completions", model=served.model.name, base_url=f"{served.url}/v1/completions",
        num_concurrent=8, tokenizer_backend="auto", max_retries=1,
    )  # fmt: skip
    theirs, references = evaluate(tmp_path, "hf", pretrained=served.model, dtype="float32")
    record_property("scores", json.dumps(ours))
    assert ours == theirs and len(ours) == 3
    assert 0 < ours["semipd_facts/acc,none"] < 1
    assert answers["semipd_continue"] == references["semipd_continue"]
    differences = []
    for mine, other in zip(answers["semipd_facts"], references["semipd_facts"], strict=True):
        for ((score, greedy),), ((expected, wanted),) in zip(mine, other, strict=True):
            differences.append(abs(float(score) - float(expected)))
            assert greedy == wanted
    record_property("largest_difference", max(differences))
    assert len(differences) == 72 and max(differences) < 1e-3


@pytest.mark.parametrize(
    ("backend", "endpoint"), [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")]
)
def test_vllms_benchmark_runs_against_us(
    served: Served, tmp_path: Path, record_property: Any, backend: str, endpoint: str
) -> None:
    make(VLLM)
    sizes = ["--random-input-len", "64", "--random-output-len", "16", "--num-prompts", "24", "--request-rate", "8"]
    command = [
        str(VLLM.program("vllm")), "bench", "serve", "--backend", backend, "--base-url", served.url, "--endpoint",
        endpoint, "--model", served.model.name, "--tokenizer", str(served.model), "--dataset-name", "random", *sizes,
        "--ignore-eos", "--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json",
        "--disable-tqdm",
    ]  # fmt: skip
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    record_property("result", json.dumps({name: result[name] for name in ("completed", "total_output_tokens")}))
    assert (result["completed"], result.get("failed", 0)) == (24, 0)
    assert result["total_output_tokens"] == 24 * 16


@pytest.mark.parametrize("module", ["completion", "chat_completion"])
def test_each_field_of_the_newest_vllm_is_decided(module: str) -> None:
    """Honoured, harmless or refused by the table: none is unknown. The classes are read, not run."""
    make(VLLM)
    (source,) = VLLM.root.glob(f"lib/python*/site-packages/vllm/entrypoints/openai/{module}/protocol.py")
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    wanted = {"completion": "CompletionRequest", "chat_completion": "ChatCompletionRequest"}[module]
    (request,) = [node for node in classes if node.name == wanted]
    names = [
        node.target.id for node in request.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    ours = CompletionRequest if module == "completion" else ChatRequest
    asked = {name: object() for name in names if name[0] != "_" and name not in ours.model_fields}
    assert len(names) > 40
    unknown = [name for name in asked if name not in fields.HARMLESS and name not in fields.REFUSED]
    assert set(unknown) <= (fields.ONLY_COMPLETIONS if ours is ChatRequest else fields.ONLY_CHAT), unknown


def test_langchain_binds_tools_of_a_model_whose_template_knows_none(served: Served) -> None:
    """SmolLM2's prompt has them, so that an argument is what was asked about; earlier calls and their results, too."""
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    fields: dict[str, Any] = {"model": served.model.name, "temperature": 0, "max_completion_tokens": 100}
    model = ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, **fields)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"name": "get_weather", "description": "The weather of a city", "parameters": parameters}
    asked = "What is the weather in Paris?"
    forced = model.bind_tools([weather], tool_choice="required", parallel_tool_calls=False).invoke(asked)
    (call,) = forced.tool_calls
    assert (call["name"], call["args"]["city"]) == ("get_weather", "Paris")
    free, plain = model.bind_tools([weather]).invoke(asked), model.invoke(asked)
    assert free.usage_metadata and plain.usage_metadata
    assert free.usage_metadata["input_tokens"] > plain.usage_metadata["input_tokens"] + 50
    history = [HumanMessage(asked), forced, ToolMessage("hail", tool_call_id=call["id"]), HumanMessage("So?")]
    longer = model.bind_tools([weather]).invoke(history)
    assert longer.usage_metadata
    assert longer.usage_metadata["input_tokens"] > free.usage_metadata["input_tokens"] + 30
