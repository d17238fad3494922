"""What `semipd run` refuses before it starts anything, each in one line with the remedy, and where it finds programs
and models.

A device that is not here, a model that can never serve, an address that is taken, a file that cannot be written. Knows
no manifest.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from pathlib import Path


class RunError(Exception):
    """`semipd run` cannot go on; the message says why and what to do."""


def find(program: str) -> str:
    """Path of one of the project's programs: beside our own Python, else on the PATH; its bare name where it is not."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program) or program


async def model_directory(uri: str, revision: str | None, claims: Path) -> str:
    """Where `spec.model` lies on this machine; a model of Hugging Face is fetched. Raises `RunError`.

    `claims` stands for the namespace's claims: pvc://CLAIM/FOLDER is its CLAIM/FOLDER.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "pvc":
        return str(_folder(uri, claims / rest))
    if scheme == "file":
        return str(_folder(uri, Path(rest)))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semipd" / "models"
    folder = cache / rest.replace("/", "--")
    directory = folder / f"current-{(revision or 'main').replace('/', '--')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made ({error.strerror}): XDG_CACHE_HOME names another place") from None
    more = ("--revision", revision) if revision else ()
    fetch = await _program("semipd-engine", "fetch", uri, "--cache", str(folder), "--link", str(directory), *more)
    if await fetch.wait():
        raise RunError(f"model.uri {uri}: the download failed, see above")
    return str(directory)


def _folder(uri: str, path: Path) -> Path:
    """The model's folder on this machine, absolute. Raises `RunError` where there is none."""
    if path.is_dir():
        return path.absolute()
    if not uri.startswith("pvc://"):
        raise RunError(f"model.uri {uri}: there is no such folder here: use --set model.uri=file:///path/of/the/model")
    where = f"without Kubernetes this is the folder {path.absolute()}, and there is none"
    raise RunError(
        f"model.uri {uri}: {where}: `make model` makes the one of the examples, --claims names another place"
    )


async def check_gpu() -> None:
    """Raises `RunError` where no GPU is visible, by the agent's own judgement. Nobody adds one to a running process."""
    doctor = await _program("semipd-agent", "doctor", "--device", "cuda", "--json", stdout=subprocess.PIPE)
    said, _ = await doctor.communicate()
    try:
        rows = {row["check"]: row for row in json.loads(said)}
    except ValueError:
        return  # the agent says it, then
    if rows.get("GPU and driver", {}).get("grade") == "fail":
        raise RunError("engine.device is cuda, and no NVIDIA GPU is visible here: use --set engine.device=cpu")


async def check_model(directory: str) -> None:
    """Raises `RunError` with the engine's words: it reads all of the folder but the tensors."""
    check = await _program("semipd-engine", "check", directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, said = await check.communicate()
    if check.returncode:
        last = (said.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the model cannot be served: {last}")


async def _program(name: str, *arguments: str, stdout: int | None = None, stderr: int | None = None) -> Process:
    """One of the project's programs. Raises `RunError` where it is not installed."""
    try:
        return await asyncio.create_subprocess_exec(find(name), *arguments, stdout=stdout, stderr=stderr)
    except OSError as error:
        raise RunError(f"{name} cannot be started ({error.strerror}): install semipd[agent,engine]") from None


def check_address(host: str, port: int, flags: str = "--port or --host") -> None:
    """Raises `RunError` where nobody could listen."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno and error.errno > 0 else error
        raise RunError(f"cannot listen on {host}:{port} ({why}): use {flags}") from None


def check_outputs(status_file: Path | None, log_file: Path | None) -> None:
    """Raises `RunError` where the status or the log could not be written."""
    if status_file and status_file.is_dir():
        raise RunError(f"--status-file {status_file}: is a folder: name a file in it")
    if status_file and not status_file.absolute().parent.is_dir():
        raise RunError(f"--status-file {status_file}: there is no folder {status_file.absolute().parent}: make it")
    try:
        if log_file:
            log_file.open("ab").close()
    except OSError as error:
        raise RunError(f"--log-file {log_file} ({error.strerror}): name a file that can be written") from None


def write_secret(file: Path, text: str) -> None:
    """For its owner alone. Raises `RunError`."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
            os.fchmod(out.fileno(), 0o600)
            out.truncate()
            out.write(text + "\n")
    except OSError as error:
        raise RunError(f"--token-file {file} ({error.strerror}): name a file that can be written") from None
