"""A model folder that the process may not read: said as such, by whoever reads it, and tried again after a chmod."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.model_folder import CONFIG, write_model

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import read_card
from semipd_engine.cli import main
from semipd_engine.contract import EngineOptions
from semipd_engine.hub.check import refusal
from semipd_engine.model.checkpoint import Checkpoint
from semipd_engine.resident.loaded_model import LoadedModel
from semipd_engine.resident.resident import Resident

pytestmark = pytest.mark.unit


@pytest.fixture
def folder() -> Iterator[Path]:
    """A whole model in a place that everybody reaches: pytest's own folder is its user's."""
    place = Path(tempfile.mkdtemp(prefix="semipd-"))
    place.chmod(0o755)
    yield write_model(place / "m")
    (place / "m").chmod(0o755)
    shutil.rmtree(place)


@contextmanager
def somebody() -> Iterator[None]:
    """Root reads everything: be somebody else, with nothing but the mode's last digit."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


CLOSED = {
    "config.json": ("config.json", 0o000),
    "tokenizer.json": ("tokenizer.json", 0o000),
    "model.safetensors": ("model.safetensors", 0o000),
    "generation_config.json": ("generation_config.json", 0o000),
    "the folder": (".", 0o600),
}


def close(folder: Path, name: str) -> Path:
    (folder / "generation_config.json").write_text("{}")
    at, mode = CLOSED[name]
    (folder / at).chmod(mode)
    return Path(os.path.normpath(folder / at))


@pytest.mark.parametrize("name", CLOSED)
def test_check_names_what_may_not_be_read_and_by_whom(name: str, folder: Path) -> None:
    at = close(folder, name)
    with somebody():
        said = refusal(folder)
    what = "entered" if at == folder else "read"
    assert said and said.startswith(f"{at} may not be {what} by user "), said
    assert f"(mode {at.stat().st_mode & 0o7777:04o}, of user {os.getuid()}" in said and said.endswith(
        "chmod or chown it"
    )


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors", "the folder"])
def test_the_resident_says_the_same_with_a_reason_of_its_own_and_a_chmod_is_noticed(name: str, folder: Path) -> None:
    """chmod leaves a file's time of change alone."""
    at, polls, owner = close(folder, name), 0, os.geteuid()

    def load(options: EngineOptions, progress: object) -> LoadedModel:
        Checkpoint(options.model, {}, read_card(options.model))
        raise AssertionError("it may not be read")

    def poll(timeout: float) -> None:
        nonlocal polls
        polls += 1
        assert polls < 20, "the chmod is not noticed"
        if polls == 10:
            now = os.geteuid()
            os.seteuid(owner)
            at.chmod(0o755)
            os.seteuid(now)

    with tempfile.TemporaryDirectory(prefix="semipd-") as run_dir:
        resident = Resident(EngineOptions(model=folder), Path(run_dir))
        resident._poll = poll  # type: ignore[method-assign]
        with somebody():
            expected = refusal(folder)
            assert (resident.serve(load), polls) == (0, 10)
        failed = resident._failure
        resident.close()
    assert failed is not None and (failed.reason, failed.message) == ("NotReadable", expected)


def test_a_link_into_a_closed_folder_names_that_folder(folder: Path) -> None:
    (store := folder.parent / "blobs").mkdir()
    (folder / "model.safetensors").rename(store / "abc")
    (folder / "model.safetensors").symlink_to(store / "abc")
    store.chmod(0o700)
    with somebody():
        assert (refusal(folder) or "").startswith(f"{store} may not be entered by user ")
        with pytest.raises(ModelError, match=f"{store} may not be entered") as caught:
            Checkpoint(folder, {}, read_card(folder))
    assert caught.value.reason == "NotReadable"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_check_as_root_says_what_a_pod_may_not_read(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semipd_engine.hub.check.os.geteuid", lambda: 0)
    assert main(["check", str(folder)]) == 0 and capsys.readouterr().err == ""
    (folder / name).chmod(0o600)
    assert main(["check", str(folder)]) == 0
    assert f"{folder / name}: root reads it, and the user of a pod may not" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["a file", "a loop", "nothing", "a file less"])
def test_what_is_no_folder_is_not_found_in_the_words_of_check(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    match what:
        case "a file":
            folder.write_text("x")
        case "a loop":
            folder.symlink_to("m")
        case "a file less":
            write_model(folder)
            (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
            index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    resident = Resident(EngineOptions(model=folder), tmp_path)

    def load(options: EngineOptions, progress: object) -> LoadedModel:
        Checkpoint(options.model, {}, read_card(options.model))
        raise AssertionError("it is not there")

    def poll(timeout: float) -> None:
        folder.unlink() if folder.is_symlink() or folder.is_file() else (folder / "x").mkdir(parents=True)

    resident._poll = poll  # type: ignore[method-assign]
    said = refusal(folder)
    assert resident.serve(load) == 0
    failed = resident._failure
    resident.close()
    assert failed is not None and (failed.reason, failed.message) == ("NotFound", said)


def test_an_error_names_the_folder_once(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 99}))
    assert (refusal(folder) or "").count(str(folder)) == 1
