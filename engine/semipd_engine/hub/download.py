"""A model from the Hugging Face hub: its files, their sums, what is kept of an earlier time, and why it is not there.

Knows no URI, no command line and no Kubernetes; nor what is in the weights.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from semipd_engine.hub.model_folder import IncompleteModel, check_model_folder

ALLOW = ["*.safetensors", "*.json", "*.jinja", "tokenizer*"]
IGNORE = ["*/*", "consolidated*.safetensors"]
"""Weights in subfolders, or in a second layout, would only cost space."""
RECORD = ".semipd-fetch.json"
"""What was fetched and verified, beside the files: a restart needs no hub and hashes nothing again."""
LOCK = ".semipd-fetch.lock"
CHUNK_BYTES = 1 << 22
_COMMIT = re.compile("[0-9a-f]{40}")


class Reason(StrEnum):
    """Why a model is not there, as the status shows it."""

    FETCHED = "Fetched"
    INVALID_URI = "InvalidURI"
    AUTH_REQUIRED = "AuthRequired"
    NOT_FOUND = "NotFound"
    NO_SPACE = "NoSpace"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    UNREACHABLE = "Unreachable"
    INCOMPLETE = "Incomplete"
    CACHE_NOT_WRITABLE = "CacheNotWritable"
    DOWNLOAD_FAILED = "DownloadFailed"


class FetchError(Exception):
    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Fetched:
    directory: Path
    bytes: int
    revision: str = ""
    note: str = ""


def check_folder(directory: Path) -> Fetched:
    """A model that is there. Raises `FetchError`."""
    if not directory.is_dir():
        raise FetchError(Reason.NOT_FOUND, f"{directory} is not a folder; check the URI and the mount")
    try:
        return Fetched(directory, check_model_folder(directory))
    except IncompleteModel as error:
        raise FetchError(Reason.INCOMPLETE, str(error)) from error


def fetch_commit(name: str, cache: Path, revision: str = "", pinned: str = "", token: str | None = None) -> Fetched:
    """The commit that `revision` stands for now, or the `pinned` one, in a folder of its own below `cache`.

    What one pod runs from is never written again, whatever becomes of the branch. Raises `FetchError`.
    """
    revision = revision or "main"
    known = cache / "refs" / revision.replace("/", "--")
    commit = pinned or (revision if _COMMIT.fullmatch(revision) else _resolve(name, revision, known, token))
    fetched = fetch_revision(name, commit, cache / commit, token)
    known.parent.mkdir(exist_ok=True)
    fresh = known.with_name(f".{known.name}.{os.getpid()}")
    fresh.write_text(commit)
    fresh.replace(known)
    return fetched


def _resolve(name: str, revision: str, known: Path, token: str | None) -> str:
    """Asks the hub; while it is away, what `known` remembers serves."""
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(name, revision=revision, token=token).sha or revision
    except Exception as error:
        failure = _explain(name, revision, error)
        if failure.reason is Reason.UNREACHABLE and known.is_file():
            return known.read_text().strip()
        raise failure from error


def fetch_revision(name: str, revision: str, to: Path, token: str | None) -> Fetched:
    """Download what is missing, then verify sizes and SHA-256 sums.

    A broken connection is resumed within a file; a new attempt keeps the files that an earlier one finished.
    """
    to.mkdir(parents=True, exist_ok=True)
    with (to / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # replicas may share one cache
        return _download(name, revision, to, token)


def _download(name: str, revision: str, to: Path, token: str | None) -> Fetched:
    record = _read_record(to)
    if record.get("model") == name and record.get("commit") == revision and _unchanged(to, record):
        return Fetched(to, check_folder(to).bytes, revision, "already there")
    from huggingface_hub import HfApi, snapshot_download  # a second of imports that file:// does not need

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, token=token)
        commit = info.sha or revision
        files = _wanted(info.siblings or [])
        if not (record.get("model") == name and record.get("commit") == commit and _unchanged(to, record)):
            for partial in to.glob(".cache/huggingface/download/*.incomplete"):
                partial.unlink()  # of an attempt that was killed; the client never takes it up again
            _check_space(to, files)
            snapshot_download(
                name, revision=commit, local_dir=to, allow_patterns=ALLOW, ignore_patterns=IGNORE, token=token
            )
            _verify(to, files)
            record = {"model": name, "commit": commit, "files": {file.path: file.size for file in files}}
            (to / RECORD).write_text(json.dumps(record))
    except FetchError:
        raise
    except Exception as error:
        failure = _explain(name, revision, error)
        if failure.reason is Reason.UNREACHABLE and record.get("model") == name and _unchanged(to, record):
            # A pod must be able to restart while the hub is away.
            return Fetched(
                to, check_folder(to).bytes, str(record["commit"]), f"the hub is away ({failure}); kept what is there"
            )
        raise failure from error
    return Fetched(to, check_folder(to).bytes, commit)


@dataclass(frozen=True)
class HubFile:
    path: str
    size: int
    sha256: str | None
    """Only for large files; the hub gives no plain checksum of small ones."""


def _wanted(siblings: list[Any]) -> list[HubFile]:
    chosen = [file for file in siblings if _matches(file.rfilename, ALLOW) and not _matches(file.rfilename, IGNORE)]
    return [HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None) for file in chosen]


def _matches(path: str, patterns: list[str]) -> bool:
    """As the hub's client matches."""
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def _check_space(to: Path, files: list[HubFile]) -> None:
    missing = sum(file.size for file in files if not _has_size(to / file.path, file.size))
    free = shutil.disk_usage(to).free
    if missing > free:
        text = f"the model needs {missing:,} more bytes and {to} has {free:,} free; enlarge the model cache"
        raise FetchError(Reason.NO_SPACE, text)


def _verify(to: Path, files: list[HubFile]) -> None:
    """Raises `FetchError` and removes the bad file, so that the next attempt downloads it again."""
    for file in files:
        path = to / file.path
        good = _has_size(path, file.size) and (file.sha256 is None or _sha256(path) == file.sha256)
        if not good:
            path.unlink(missing_ok=True)
            raise FetchError(
                Reason.CHECKSUM_MISMATCH,
                f"{file.path} does not have the size and SHA-256 sum that the hub gives; removed",
            )


def _sha256(path: Path) -> str:
    from tqdm import tqdm

    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as source, tqdm(total=size, unit="B", unit_scale=True, desc=f"verify {path.name}") as bar:
        while block := source.read(CHUNK_BYTES):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _read_record(to: Path) -> dict[str, Any]:
    try:
        record = json.loads((to / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else {}


def _unchanged(to: Path, record: dict[str, Any]) -> bool:
    return all(_has_size(to / path, size) for path, size in record["files"].items())


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _explain(name: str, revision: str, error: Exception) -> FetchError:
    """The reason behind an exception of the hub's client or of the file system."""
    from huggingface_hub import errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    where = f"hf://{name}@{revision}"
    if isinstance(error, errors.GatedRepoError | errors.DisabledRepoError) or status == 403:
        text = f"{where}: access is restricted; accept its terms on the hub and set a token (tokenSecretRef)"
        return FetchError(Reason.AUTH_REQUIRED, text)
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(Reason.NOT_FOUND, f"{where}: no such revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        text = f"{where}: no such model, or it is private and needs a token (tokenSecretRef)"
        return FetchError(Reason.NOT_FOUND, text)
    if status == 401:
        return FetchError(Reason.AUTH_REQUIRED, f"{where}: the hub refused the token (tokenSecretRef)")
    if isinstance(error, errors.HFValidationError):
        return FetchError(Reason.INVALID_URI, f"{where}: {error}")
    if isinstance(error, OSError) and (reason := of_file_system(error)):
        text = "no space left in the model cache; enlarge it" if reason is Reason.NO_SPACE else str(error)
        return FetchError(reason, f"{where}: {text}")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return FetchError(Reason.CHECKSUM_MISMATCH, f"{where}: a file came with the wrong size: {error}")
    away = (httpx.TransportError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    if status == 429:
        return FetchError(Reason.UNREACHABLE, f"{where}: the hub wants fewer requests: {_one_line(error)}")
    if status >= 500:
        return FetchError(Reason.UNREACHABLE, f"{where}: the hub is in trouble: {_one_line(error)}")
    if isinstance(error, away):
        return FetchError(Reason.UNREACHABLE, f"{where}: the hub cannot be reached: {_one_line(error)}")
    return FetchError(Reason.DOWNLOAD_FAILED, f"{where}: {type(error).__name__}: {_one_line(error)}")


def of_file_system(error: OSError) -> Reason | None:
    """What is wrong with the folder, if it is that."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Reason.NO_SPACE
    return Reason.CACHE_NOT_WRITABLE if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
