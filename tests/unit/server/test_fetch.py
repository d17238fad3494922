"""``fetch`` against a local stand-in of the hub's endpoints, in a process of its own, and against folders."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from e2e.lib.hub import Hub, serving
from semipd_engine.hub.download import _explain, of_file_system
from semipd_engine.hub.fetch import EXIT_STATUS

pytestmark = pytest.mark.unit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def shard(values: int) -> bytes:
    """A safetensors file with one float32 tensor."""
    entry = {"t": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}
    header = json.dumps(entry).encode()
    return struct.pack("<Q", len(header)) + header + bytes(range(256)) * (values // 64)


FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    ).encode(),
    "model-1-of-2.safetensors": shard(1 << 20),
    "model-2-of-2.safetensors": shard(1 << 10),
    "README.md": b"not wanted",
    "pytorch_model.bin": b"not wanted",
    "original/consolidated.safetensors": b"not wanted",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub("org/name", dict(FILES), COMMIT)) as hub:
        yield hub


class Result(NamedTuple):
    code: int
    line: dict[str, Any]
    stderr: str


def fetch(hub_url: str, home: Path, *arguments: str, **environment: str) -> Result:
    log = home / "termination-log"
    command = [sys.executable, "-m", "semipd_engine.cli", "fetch", *arguments, "--termination-log", str(log)]
    quick = {"HF_ENDPOINT": hub_url, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
    quick |= {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2", "HF_TOKEN": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | quick | environment)
    assert log.exists(), result.stderr
    (text,) = log.read_text().splitlines()
    return Result(result.returncode, json.loads(text), result.stderr)


def test_a_model_is_downloaded_verified_and_kept(hub: Hub, tmp_path: Path) -> None:
    to = tmp_path / "model"
    result = fetch(hub.url, tmp_path, "hf://org/name@main", "--to", str(to))
    assert (result.code, result.line["reason"], result.line["revision"]) == (0, "Fetched", COMMIT)
    assert result.line["bytes"] == sum(len(FILES[name]) for name in FILES if name.startswith("model-"))
    assert "model-1-of-2.safetensors" in result.stderr  # the progress bar
    present = {path.name for path in to.iterdir() if not path.name.startswith(".")}
    assert present == set(FILES) - {"README.md", "pytorch_model.bin", "original/consolidated.safetensors"}
    assert all((to / name).read_bytes() == FILES[name] for name in present)
    # Again: nothing is downloaded. Without the hub: what is there is used.
    hub.downloads.clear()
    assert fetch(hub.url, tmp_path, "--uri", "hf://org/name", "--to", str(to)).code == 0
    assert not hub.downloads
    away = fetch("http://127.0.0.1:9", tmp_path, "hf://org/name", "--out", str(to))
    assert (away.code, away.line["reason"]) == (0, "Fetched") and "away" in away.line["message"]
    # A file that was damaged since is fetched again.
    damaged = to / "model-2-of-2.safetensors"
    damaged.write_bytes(b"short")
    os.utime(damaged, (time.time() + 10,) * 2)  # the hub's library takes a file no newer than its record for unchanged
    assert fetch(hub.url, tmp_path, "hf://org/name", "--to", str(to)).code == 0
    assert (to / "model-2-of-2.safetensors").read_bytes() == FILES["model-2-of-2.safetensors"]


def test_each_commit_has_a_folder_of_its_own_and_a_pinned_one_is_taken(hub: Hub, tmp_path: Path) -> None:
    cache, link, pin = tmp_path / "cache", tmp_path / "current", tmp_path / "pin"
    told = ("hf://org/name", "--cache", str(cache), "--link", str(link), "--pin-file", str(pin))
    first = fetch(hub.url, tmp_path, *told)
    assert (first.code, first.line["revision"]) == (0, COMMIT)
    assert link.resolve() == cache / COMMIT and (link / "config.json").read_bytes() == b"{}"
    # The branch moves: whoever runs from the first commit keeps it, byte for byte.
    moved = "f" * 40
    hub.commit, hub.files["config.json"] = moved, b'{"new": 1}'
    assert fetch(hub.url, tmp_path, *told).line["revision"] == moved
    assert link.resolve() == cache / moved and (link / "config.json").read_bytes() == b'{"new": 1}'
    assert (cache / COMMIT / "config.json").read_bytes() == b"{}"
    # The other pods of the service are told the commit: no hub is asked, and no branch.
    pin.write_text(COMMIT + "\n")
    assert fetch("http://127.0.0.1:9", tmp_path, *told).line["revision"] == COMMIT
    assert link.resolve() == cache / COMMIT
    # Without a pin and without the hub, what the branch stood for last is known.
    pin.write_text("")
    hub.refuse = (503, "")
    known = fetch(hub.url, tmp_path, *told)
    assert (known.code, known.line["revision"]) == (0, COMMIT)


def test_a_cache_is_for_the_hub_alone(hub: Hub, tmp_path: Path) -> None:
    for told in (("file:///m",), ("hf://org/name", "--to", str(tmp_path / "m"))):
        assert fetch(hub.url, tmp_path, *told, "--cache", str(tmp_path)).line["reason"] == "InvalidURI"


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EROFS, "CacheNotWritable"), (errno.EACCES, "CacheNotWritable"), (errno.ENOSPC, "NoSpace")],
)
def test_a_cache_that_takes_no_files_is_named(number: int, reason: str) -> None:
    """Of a claim that is ReadOnlyMany, or another user's; root, as tests may be, writes everywhere."""
    assert of_file_system(OSError(number, os.strerror(number))) == reason
    failure = _explain("org/name", "main", OSError(number, os.strerror(number), "/models/x"))
    assert failure.reason == reason and failure.reason in EXIT_STATUS
    assert of_file_system(OSError(errno.EIO, "")) is None


def test_its_token_is_in_no_word_of_it(hub: Hub, tmp_path: Path) -> None:
    """A secret without a known form, in a message and in a traceback's place."""
    secret, file = "correct-horse", tmp_path / "token"
    file.write_text(secret + "\n")
    told = ("hf://org/name", "--to", str(tmp_path / "m"), "--revision", f"v-{secret}")
    hub.refuse = (404, "RevisionNotFound")
    for more, environment in (((), {"HF_TOKEN": secret}), (("--token-file", str(file)), {})):
        result = fetch(hub.url, tmp_path, *told, *more, **environment)
        assert result.line["message"] == "hf://org/name@v-***: no such revision"
        assert secret not in json.dumps(result.line)


def test_a_broken_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.files["model-1-of-2.safetensors"] = shard(6 << 20)
    hub.cut_after = 12 << 20  # the client writes blocks of 10 MB
    assert fetch(hub.url, tmp_path, "hf://org/name", "--to", str(tmp_path / "model")).code == 0
    spans = [span for name, span in hub.downloads if name == "model-1-of-2.safetensors"]
    assert spans == ["", "bytes=10485760-"]


def test_a_new_attempt_keeps_finished_files_and_clears_the_rest(hub: Hub, tmp_path: Path) -> None:
    to = tmp_path / "model"
    hub.claimed["model-2-of-2.safetensors"] = FILES["model-2-of-2.safetensors"]
    hub.files["model-2-of-2.safetensors"] = bytes(len(FILES["model-2-of-2.safetensors"]))
    assert fetch(hub.url, tmp_path, "hf://org/name", "--to", str(to)).line["reason"] == "ChecksumMismatch"
    stale = to / ".cache/huggingface/download/left.by.a.kill.incomplete"
    stale.write_bytes(b"x" * 1000)
    hub.files["model-2-of-2.safetensors"] = FILES["model-2-of-2.safetensors"]
    hub.downloads.clear()
    assert fetch(hub.url, tmp_path, "hf://org/name", "--to", str(to)).code == 0
    assert [name for name, _ in hub.downloads] == ["model-2-of-2.safetensors"]
    assert not stale.exists()


@pytest.mark.parametrize(
    ("refuse", "code", "reason", "words"),
    [
        ((429, ""), 7, "Unreachable", "the hub wants fewer requests"),
        ((500, ""), 7, "Unreachable", "the hub is in trouble"),
        ((401, "GatedRepo"), 3, "AuthRequired", "token"),
        ((403, "GatedRepo"), 3, "AuthRequired", "terms"),
        ((403, ""), 3, "AuthRequired", "token"),
        ((401, "RepoNotFound"), 4, "NotFound", "private"),
        ((404, "RepoNotFound"), 4, "NotFound", "no such model"),
        ((404, "RevisionNotFound"), 4, "NotFound", "revision"),
        ((400, ""), 1, "DownloadFailed", "Bad"),
    ],
)
def test_a_refusal_has_a_reason(
    hub: Hub, tmp_path: Path, refuse: tuple[int, str], code: int, reason: str, words: str
) -> None:
    hub.refuse = refuse
    result = fetch(hub.url, tmp_path, "hf://org/name", "--to", str(tmp_path / "model"))
    assert (result.code, result.line["reason"]) == (code, reason)
    assert words in result.line["message"] and "org/name" in result.line["message"]


def test_a_hub_that_is_away(tmp_path: Path) -> None:
    result = fetch("http://127.0.0.1:9", tmp_path, "hf://org/name", "--to", str(tmp_path / "model"))
    assert (result.code, result.line["reason"]) == (7, "Unreachable")


def test_wrong_bytes_are_found_and_removed(hub: Hub, tmp_path: Path) -> None:
    good = FILES["model-1-of-2.safetensors"]
    hub.claimed["model-1-of-2.safetensors"] = good
    hub.files["model-1-of-2.safetensors"] = good[:-1] + b"!"
    result = fetch(hub.url, tmp_path, "hf://org/name", "--to", str(tmp_path / "model"))
    assert (result.code, result.line["reason"]) == (6, "ChecksumMismatch")
    assert "model-1-of-2.safetensors" in result.line["message"]
    hub.files["model-1-of-2.safetensors"] = good
    assert fetch(hub.url, tmp_path, "hf://org/name", "--to", str(tmp_path / "model")).code == 0


def test_a_shard_that_the_repository_lacks(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model-2-of-2.safetensors"]
    result = fetch(hub.url, tmp_path, "hf://org/name", "--to", str(tmp_path / "model"))
    assert (result.code, result.line["reason"]) == (8, "Incomplete")
    assert "model-2-of-2.safetensors is missing" in result.line["message"]


@pytest.mark.parametrize("uri", ["s3://bucket/x", "hf://", "name", "file://relative", "pvc://"])
def test_a_bad_uri_is_explained(tmp_path: Path, uri: str) -> None:
    result = fetch("http://127.0.0.1:9", tmp_path, uri, "--to", str(tmp_path))
    assert (result.code, result.line["reason"]) == (2, "InvalidURI") and "hf://" in result.line["message"]


def write(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir()
    for name, data in files.items():
        if "/" not in name:
            (directory / name).write_bytes(data)
    return directory


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({}, 0, "is in"),
        ({"config.json": None}, 8, "config.json is missing"),
        ({"config.json": b"{"}, 8, "config.json"),
        ({"tokenizer.json": None}, 8, "tokenizer.json is missing"),
        ({"model-2-of-2.safetensors": None}, 8, "model-2-of-2.safetensors is missing"),
        ({"model-2-of-2.safetensors": shard(1 << 10)[:-5]}, 8, "bytes instead of"),
        ({"model-2-of-2.safetensors": b"<html>"}, 8, "not a safetensors file"),
        ({"model.safetensors.index.json": b"{}"}, 8, "weight_map"),
    ],
)
@pytest.mark.parametrize("scheme", ["file", "pvc"])
def test_a_mounted_model_is_checked(
    tmp_path: Path, scheme: str, change: dict[str, bytes | None], code: int, words: str
) -> None:
    files = {name: data for name, data in (FILES | change).items() if data is not None}
    model = write(tmp_path / "model", files)
    source = [f"file://{model}"] if scheme == "file" else ["pvc://claim/folder", "--to", str(model)]
    result = fetch("http://127.0.0.1:9", tmp_path, *source)
    assert result.code == code and words in result.line["message"]


def test_a_full_disk_is_said_before_the_download(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semipd_engine.hub import download as module

    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(module.FetchError, match=r"needs 4,198,.* more bytes.*100 free") as refused:
        module._check_space(tmp_path, [module.HubFile(name, len(data), None) for name, data in FILES.items()])
    assert refused.value.reason is module.Reason.NO_SPACE
