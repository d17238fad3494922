"""Takes the place of ``semipd-engine`` under the agent: the real core, and the real resident and workers around the
fake model (`tests.engine`), on the CPU, with MPS clients as `mps_stand_in` has them.

A worker attaches to the daemon of its rung's environment when it starts, and reports the SMs that it then sees. Nothing
is limited. ``serve`` starts core and resident and restarts neither.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

from tests.engine import fake_resident
from tests.unit.mps_stand_in import SMS, attach

from semipd_engine.contract import EngineOptions
from semipd_engine.resident import resident


class ClientModel(fake_resident.FakeModel):
    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._resident = os.getpid()

    def sm_count(self) -> int | None:
        """Every worker is a client, the resident is none."""
        return SMS if os.getpid() == self._resident else attach(os.environ)


def load(options: EngineOptions, progress: Callable[[int], None]) -> ClientModel:
    progress(50)
    return ClientModel(options)


def serve(flags: list[str]) -> int:
    at = flags.index("--device")
    flags = [*flags[:at], "--device", "cpu", *flags[at + 2 :]]
    commands = ([sys.executable, "-m", __spec__.name, "resident"], [sys.executable, "-m", "semipd_engine.core"])
    parts = [subprocess.Popen([*command, *flags]) for command in commands]

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    resident_part, core = parts
    try:
        return core.wait()
    finally:
        for part in (core, resident_part):
            part.terminate()
            part.wait()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        sys.exit(serve(sys.argv[2:]))
    sys.exit(resident.run(EngineOptions.parse(sys.argv[2:], "mps_engine", ""), load))
