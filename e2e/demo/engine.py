"""`semipd-engine serve` as a child of the demo, for as long as a `with` block lasts."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from e2e.demo.outcome import DemoError
from e2e.demo.paths import BIN
from e2e.lib.process import answers, stop, tail

START_SECONDS = 120


@contextmanager
def serve(model: Path, log: Path, *flags: str) -> Iterator[str]:
    """Starts the engine on a free port; yields its address once it is ready. Raises DemoError if it does not get so."""
    with tempfile.TemporaryDirectory(prefix="semipd-demo-") as folder, log.open("wb") as output:
        command = [str(BIN / "semipd-engine"), "serve", "--model", str(model), "--port", "0", "--run-dir", folder]
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--drain-seconds", "1", *flags],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _ready(process, Path(folder) / "api.port", log)
        finally:
            stop(process)


def _ready(process: subprocess.Popen[bytes], port_file: Path, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if port_file.exists() and (port := port_file.read_text().strip()):
            url = f"http://127.0.0.1:{port}"
            if answers(f"{url}/ready"):
                return url
        time.sleep(0.1)
    how = "ended" if process.poll() is not None else f"is not ready after {START_SECONDS} s"
    raise DemoError(f"the engine {how}; the end of {log}:\n{tail(log)}")


def flags(values: dict[str, object]) -> Sequence[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]
