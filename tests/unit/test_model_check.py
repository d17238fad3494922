"""A model folder that can never be served is refused once, with the file at fault, before anything is started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.unit.model_folder import CONFIG, LAYER, SHAPES, write_model, write_tensors

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import read_card
from semipd_engine.cli import main
from semipd_engine.contract import EngineOptions, api_keys
from semipd_engine.hub.check import refusal
from semipd_engine.hub.download import FetchError, check_folder
from semipd_engine.process import TRY_LATER
from semipd_engine.resident.loaded_model import LoadedModel
from semipd_engine.resident.resident import Resident

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


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff\n# later\n", None])
def test_an_api_that_would_admit_nobody_is_refused_with_the_file_at_fault(content: str | None, tmp_path: Path) -> None:
    """An API key's Secret that is empty: all would look well, and every request would get 401."""
    write_model(folder := tmp_path / "m")
    keys = tmp_path / "api-keys"
    if content is not None:
        keys.write_text(content)
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(folder), "--api-key-file", str(keys)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    why = "No such file or directory" if content is None else "holds no key: write one on each line"
    assert result.returncode == 2 and result.stderr.splitlines()[-1].endswith(why) and str(keys) in result.stderr


def test_the_keys_of_a_file_are_its_lines_but_for_comments_and_what_editors_add(tmp_path: Path) -> None:
    (file := tmp_path / "api-keys").write_bytes(
        "\ufeffk-one\r\n\r\n# the next is Ann's\r\n  k-two \n#k-old\nk#3".encode()
    )
    assert api_keys(file) == [b"k-one", b"k-two", b"k#3"]
    file.write_bytes(b"\xef\xbb\xbf# first\nk")
    assert api_keys(file) == [b"k"]


def tensors(changes: dict[str, tuple[int, ...] | None], dtype: str = "F32") -> Callable[[Path], object]:
    """Other shapes, more tensors, or (None) fewer."""
    shapes = {name: shape for name, shape in (SHAPES | changes).items() if shape is not None}
    return lambda folder: write_tensors(folder, shapes, dtype)


def stands(name: str, what: str, folder: Path) -> None:
    """In the place of a file: what git leaves without git-lfs, a hub's cache without its blobs, or nothing."""
    path = folder / name
    if name == "model.safetensors.index.json":  # the whole file would win
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    path.unlink(missing_ok=True)
    match what:
        case "pointer":
            path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 988097824\n")
        case "link":
            path.symlink_to("/nowhere/blobs/abc")
        case "directory":
            path.mkdir()
        case "empty":
            path.touch()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "tokenizer truncated": (truncate("tokenizer.json"), "tokenizer.json"),
    "tokenizer missing": (remove("tokenizer.json"), "tokenizer.json"),
    "config missing": (remove("config.json"), "config.json"),
    "config truncated": (truncate("config.json"), "config.json"),
    "weights truncated": (truncate("model.safetensors"), "model.safetensors"),
    "weights missing": (remove("model.safetensors"), "safetensors"),
    "no such architecture": (
        config(model_type="phi3", architectures=["Phi3ForCausalLM"]),
        "model_type is 'phi3' (Phi3ForCausalLM); this engine runs deepseek_v2, deepseek_v3, llama",
    ),
    "no such architecture, and other files": (
        lambda f: (config(model_type="gpt2")(f), remove("model.safetensors")(f), remove("tokenizer.json")(f)),
        "model_type is 'gpt2'",
    ),
    "weights of another format": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "neither model.safetensors nor model.safetensors.index.json; pytorch_model.bin is not read: load it with",
    ),
    "weights of llama.cpp": (
        lambda f: (f / "model.safetensors").rename(f / "m.gguf"),
        "import-gguf makes such a folder of",
    ),
    "nothing but weights of llama.cpp": (
        lambda f: ((f / "model.safetensors").rename(f / "m.gguf"), remove("config.json")(f)),
        "config.json is missing; semipd-engine import-gguf makes such a folder of m.gguf",
    ),
    "tokenizer of another format": (
        lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"),
        "tokenizer.json is missing; transformers' AutoTokenizer makes it of tokenizer.model",
    ),
    "template list with an odd entry": (template([{"name": "default"}, "x"]), "tokenizer_config.json"),
    "text_config is a list": (config(text_config=[1]), "config.json: text_config is [1]"),
    "a model inside": (config(text_config=CONFIG), "text_config is an object; this engine runs models without it"),
    "another hidden_size": (
        config(hidden_size=16),
        "embed_tokens.weight has shape (4, 8), config.json says (4, 16)",
    ),
    "a layer more in config.json": (config(num_hidden_layers=2), "9 tensors are missing, among them model.layers.1."),
    "another vocab_size": (config(vocab_size=1000), "says (1000, 8)"),
    "a layer more in the weights": (tensors({"model.layers.1.input_layernorm.weight": (8,)}), "model.layers.1.input"),
    "a tensor less": (tensors({f"{LAYER}mlp.up_proj.weight": None}), "1 tensors are missing, among them"),
    "a bias that no llama has": (tensors({f"{LAYER}self_attn.q_proj.bias": (8,)}), "q_proj.bias is no part of a llama"),
    "an output layer of another size": (
        lambda f: (config(tie_word_embeddings=True)(f), tensors({"lm_head.weight": (5, 8)})(f)),
        "lm_head.weight has shape (5, 8)",
    ),
    "integers": (tensors({}, "I32"), "holds I32"),
    "tensors that overlap": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes().replace(b"[128, 160]", b"[100, 132]")
        ),
        "model.safetensors: the place of",
    ),
    "a shape that its bytes are not of": (tensors({}, "F16"), "model.safetensors: the place of"),
    "an end beyond the vocabulary": (config(eos_token_id=999_999), "eos_token_id is 999999; expected ids below"),
    "an end of the defaults beyond it": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": [3, 4]}'),
        "generation_config.json: eos_token_id is [3, 4]; expected ids below vocab_size (4)",
    ),
    "no end": (config(eos_token_id=-1), "eos_token_id is -1"),
    **{
        f"{what}: {name}": (partial(stands, name, what), f"{name} {says}")
        for what, says in {
            "pointer": "is a Git LFS pointer and not the file that it stands for: git lfs pull",
            "link": "is a link to /nowhere/blobs/abc, which is not there: copy or mount what the links lead to",
            "directory": "is no file; copy or fetch the model again",
            "empty": "is empty; copy or fetch it again",
        }.items()
        for name in (
            *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
            *("model.safetensors", "model.safetensors.index.json"),
        )
    },
    "no JSON": (lambda f: (f / "config.json").write_text("{'a': 1}"), "config.json is not JSON: Expecting property"),
    "quantised": (config(quantization_config={"quant_method": "awq", "bits": 4}), "'awq'; this engine reads no quanti"),
    "a feature that is not to be": (config(sliding_window=64), "sliding_window is 64; this engine runs models without"),
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


def test_whoever_points_a_claim_at_weights_of_llama_cpp_is_told_what_makes_a_folder_of_them(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(FetchError, match=r"config\.json is missing; semipd-engine import-gguf .* m\.gguf"):
        check_folder(tmp_path)


@pytest.mark.parametrize("alike", [True, False])
def test_an_output_layer_may_lie_beside_tied_embeddings_or_not(alike: bool, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    config(tie_word_embeddings=True)(folder)
    tensors({} if alike else {"lm_head.weight": None})(folder)
    assert refusal(folder) is None


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{% for message in messages %}", "'default' is broken"),
        ("{{ messages | no_such_filter }}", "'default' is broken"),
        ("{{ messages[0].content.parts.text }}", "refuses these messages"),
        (None, "no chat template"),
        ("{{ messages }}", ""),
    ],
)
def test_check_says_what_a_chat_would_be_told(
    source: str | None, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is served all the same: completions need no template."""
    folder = write_model(tmp_path / "m")
    template(source)(folder)
    assert refusal(folder) is None
    assert main(["check", str(folder)]) == 0
    said = capsys.readouterr().out.removeprefix(f"{folder}: can be served").strip()
    assert (said == "") if not named else (said.startswith(", but no chat: ") and named in said)


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
    assert (resident.serve(load), polls) == (0, 50)
    resident.close()


@pytest.mark.parametrize("may_pass", [True, False])
def test_memory_that_may_come_is_waited_for_and_a_pool_that_is_too_small_is_not(may_pass: bool, tmp_path: Path) -> None:
    folder, polls = write_model(tmp_path / "m"), 0
    resident = Resident(EngineOptions(model=folder), tmp_path)

    def load(options: EngineOptions, progress: object) -> LoadedModel:
        raise ModelError("OutOfMemory", "too little", may_pass)

    def poll(timeout: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 50:
            remove("config.json")(folder)

    resident._poll = poll  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("semipd_engine.resident.resident.RETRY_AFTER_SECONDS", -1.0)
        assert (resident.serve(load), polls) == ((TRY_LATER, 0) if may_pass else (0, 50))
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
    free = ("--claims", str(tmp_path), "--port", "0")
    refused(run(*free, "--status-file", str(tmp_path)), f"--status-file {tmp_path}: is a folder")
    refused(run(*free, "--token-file", "/nowhere/token"), "--token-file /nowhere/token")
    refused(run(*free, "--agent-port", "70000"), "127.0.0.1:70000", "--agent-port")
    truncate("tokenizer.json")(folder)
    refused(run("--claims", str(tmp_path)), "tokenizer.json")


def test_an_engine_that_a_person_starts_ends_with_one_line(tmp_path: Path) -> None:
    """The agent gives a run directory, and shows what is wrong until it is repaired."""
    command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(tmp_path / "none"), "--port", "0"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert str(tmp_path / "none") in line


def test_a_port_that_is_taken_is_told_to_a_person_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights would be loaded, and the api started again and again. An agent names it, and waits."""
    write_model(folder := tmp_path / "m")
    served: list[EngineOptions] = []

    def serve(options: EngineOptions) -> int:
        served.append(options)
        return 0

    monkeypatch.setattr("semipd_engine.launcher.serve", serve)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = ["serve", "--model", str(folder), "--port", str(taken.getsockname()[1])]
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            f"semipd-engine serve: --host 127.0.0.1 {' '.join(command[3:])}: Address already in use; "
        )
        assert served == [] and main([*command, "--run-dir", str(tmp_path / "run")]) == 0
    assert main(command) == 0 and len(served) == 2
