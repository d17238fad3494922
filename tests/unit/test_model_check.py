"""A model folder that can never be served is refused once, with the file at fault, before anything is started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.model_folder import CONFIG, write_model

from semipd_engine.cards.registry import read_card
from semipd_engine.contract import EngineOptions
from semipd_engine.hub.check import refusal
from semipd_engine.resident.loaded_model import LoadedModel
from semipd_engine.resident.resident import EXIT_RETRY, Resident

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def truncate(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def template(value: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))


@pytest.mark.parametrize("content", ["", " \n\n", None])
def test_an_api_that_would_admit_nobody_is_refused_with_the_file_at_fault(content: str | None, tmp_path: Path) -> None:
    """An API key's Secret that is empty: all would look well, and every request would get 401."""
    write_model(folder := tmp_path / "m")
    keys = tmp_path / "api-keys"
    if content is not None:
        keys.write_text(content)
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(folder), "--api-key-file", str(keys)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    why = "No such file or directory" if content is None else "holds no key: write one on each line"
    assert result.returncode == 2 and result.stderr.splitlines()[-1].endswith(why) and str(keys) in result.stderr


BROKEN = {
    "tokenizer truncated": (truncate("tokenizer.json"), "tokenizer.json"),
    "tokenizer missing": (remove("tokenizer.json"), "tokenizer.json"),
    "config missing": (remove("config.json"), "config.json"),
    "config truncated": (truncate("config.json"), "config.json"),
    "weights truncated": (truncate("model.safetensors"), "model.safetensors"),
    "weights missing": (remove("model.safetensors"), "safetensors"),
    "no such architecture": (config(model_type="mamba"), "mamba"),
    "template list with an odd entry": (template([{"name": "default"}, "x"]), "tokenizer_config.json"),
    "text_config is a list": (config(text_config=[1]), "config.json"),
    "tokenizer of another kind": (lambda f: (f / "tokenizer.json").write_text('{"model": {}}'), "tokenizer.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_file_at_fault_is_named(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    assert refusal(folder) is None
    damage, named = BROKEN[name]
    damage(folder)
    said = refusal(folder)
    assert said and named in said and "\n" not in said


def test_a_null_text_config_counts_as_absent(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    config(text_config=None)(folder)
    assert refusal(folder) is None


def test_what_can_never_load_is_tried_again_only_when_its_folder_has_changed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    remove("config.json")(folder)
    resident, polls = Resident(EngineOptions(model=folder), tmp_path), 0

    def load(options: EngineOptions, progress: object) -> LoadedModel:
        read_card(options.model)
        raise AssertionError("config.json is missing")

    def poll(timeout: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 50:
            write_model(folder)

    resident._poll = poll  # type: ignore[method-assign]
    assert (resident.serve(load), polls) == (EXIT_RETRY, 50)
    resident.close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "semipd_cli", "run", "-f", str(ROOT / "examples/cpu.yaml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def refused(answer: subprocess.CompletedProcess[str], *words: str) -> None:
    assert answer.returncode == 1
    assert answer.stdout == "", "nothing was started"
    (line,) = answer.stderr.splitlines()
    for word in words:
        assert word in line


def test_semipd_run_ends_with_one_line(tmp_path: Path) -> None:
    refused(run("--claims", str(tmp_path)), "pvc://models/smollm2-135m-instruct", str(tmp_path), "make model")
    folder = write_model(tmp_path / "models" / "smollm2-135m-instruct")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(run("--claims", str(tmp_path), "--port", port), f"127.0.0.1:{port}", "--port")
    refused(run("--claims", str(tmp_path), "--port", "70000"), "127.0.0.1:70000", "--port")
    refused(run("--claims", str(tmp_path), "--host", "256.1.1.1"), "256.1.1.1:8000", "--host")
    refused(run("--claims", str(tmp_path), "--port", "0", "--log-file", "/nowhere/log"), "--log-file /nowhere/log")
    refused(run("--claims", str(tmp_path), "--port", "0", "--status-file", "/nowhere/s"), "--status-file /nowhere/s")
    truncate("tokenizer.json")(folder)
    refused(run("--claims", str(tmp_path)), "tokenizer.json")


def test_an_engine_that_a_person_starts_ends_with_one_line(tmp_path: Path) -> None:
    """The agent gives a run directory, and shows what is wrong until it is repaired."""
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(tmp_path / "none"), "--port", "0"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert str(tmp_path / "none") in line
