"""One SemiPDService, wherever it runs, as the acts see it: send requests, read the object, change its spec.

`Embedded` is `semipd run` on a manifest of the demo's own; `e2e.demo.kube.Deployed` is the same manifest in a cluster.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]
import yaml

from bench.traffic.client import replay_now
from bench.traffic.plan import Request
from bench.traffic.records import Record
from e2e.demo.engine import START_SECONDS
from e2e.demo.outcome import DemoError
from e2e.demo.paths import BIN, ROOT
from e2e.lib.process import answers, free_port, stop, tail
from e2e.lib.service import condition, ready

Send = Callable[[Sequence[Request]], list[Record]]
Manifest = dict[str, Any]
EXAMPLE = ROOT / "examples" / "cpu.yaml"


class Service(Protocol):
    where: str
    """For check names: "embedded" or "through the Service"."""

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Path | None = None) -> list[Record]:
        """`bench.traffic.replay`, blocking."""

    def read(self) -> Manifest:
        """The object with its status, as `kubectl get -o json` shows it; {} while there is none."""

    def merge(self, spec: Manifest) -> None:
        """JSON merge patch of the spec."""

    def identity(self) -> tuple[str, ...]:
        """Changes when a serving process or pod was replaced."""


def manifest(uri: str) -> Manifest:
    """examples/cpu.yaml with the demo's model."""
    found: Manifest = yaml.safe_load(EXAMPLE.read_text())
    found["spec"]["model"]["uri"] = uri
    return found


def merged(base: Manifest, patch: Manifest) -> Manifest:
    """RFC 7386 for objects: None removes, dicts merge, the rest replaces."""
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = merged(old if isinstance(old, dict) else {}, value)
        else:
            result[key] = value
    return result


def applied(obj: Manifest) -> tuple[int, int] | None:
    """status.partition.applied as (prefill, decode) in percent."""
    shares = obj.get("status", {}).get("partition", {}).get("applied")
    return (shares["prefillPercent"], shares["decodePercent"]) if shares else None


def decisions(obj: Manifest) -> list[Manifest]:
    """Newest first."""
    return list(obj.get("status", {}).get("partition", {}).get("decisions", ()))


def wait_until(
    service: Service, true: Callable[[Manifest], bool], seconds: float, what: str, every: float = 0.2
) -> tuple[Manifest, float]:
    """(object, seconds it took). Raises DemoError with the Ready condition when it does not come true."""
    began = time.monotonic()
    while not true(obj := service.read()):
        if time.monotonic() - began > seconds:
            message = condition(obj, "Ready").get("message", "no status")
            raise DemoError(f"{what} did not come true within {seconds:.0f} s ({message})")
        time.sleep(every)
    return obj, time.monotonic() - began


class Embedded(AbstractContextManager["Embedded"]):
    """`semipd run` in the background; its manifest is watched, so a change of the file is a change of the spec."""

    where = "without Kubernetes"

    def __init__(self, model: Path, folder: Path) -> None:
        self._folder = folder
        self._manifest = manifest(f"file://{model}")
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def _log(self) -> Path:
        return self._folder / "semipd-run.log"

    @property
    def _status(self) -> Path:
        return self._folder / "status.json"

    def __enter__(self) -> Embedded:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._status.unlink(missing_ok=True)
        self._write()
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        command = [str(BIN / "semipd"), "run", "-f", str(self._file), "--port", str(port)]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--status-file", str(self._status)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (ready(self.read()) and answers(f"{self._url}/ready")):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise DemoError(f"semipd run is not ready; the end of {self._log}:\n{tail(self._log)}")
                time.sleep(0.2)
        except BaseException:
            stop(self._process)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            stop(self._process)

    @property
    def _file(self) -> Path:
        return self._folder / "service.yaml"

    def _write(self) -> None:
        fresh = self._file.with_suffix(".fresh")
        fresh.write_text(yaml.safe_dump(self._manifest, sort_keys=False))
        fresh.replace(self._file)

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Path | None = None) -> list[Record]:
        return replay_now(plan, self._url, start, stop)

    def read(self) -> Manifest:
        try:
            found: Manifest = json.loads(self._status.read_text())
        except FileNotFoundError:
            return {}
        return found

    def merge(self, spec: Manifest) -> None:
        self._manifest = merged(self._manifest, {"spec": spec})
        self._write()

    def identity(self) -> tuple[str, ...]:
        """PIDs below `semipd run`: a restarted agent or engine is another one."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        return tuple(sorted(f"{child.pid}" for child in children))
