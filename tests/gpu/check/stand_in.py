"""The way under MPS where there is no GPU: a resident whose workers are clients of the stand-in daemon, on the CPU.

``python -m tests.gpu.check.stand_in FLAGS`` is the resident. It starts its workers as on a GPU, by exec, and through
this file (``... -m semipd_engine.worker``, and their zygote), which gives them the number of SMs that their daemon
grants. Nothing is limited. All the rest is what serves on a GPU.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.unit.mps_stand_in import SMS, attach


@cache
def sms_seen() -> int | None:
    """SMs that this process would see under the daemon of its environment; None where no stand-ins are in use."""
    return attach(os.environ) if "STAND_IN_SCRIPT" in os.environ else None


def _resident(flags: list[str]) -> int:
    from tests.engine import exec_resident

    from semipd_engine.contract import EngineOptions
    from semipd_engine.resident import resident
    from semipd_engine.worker.attach import TorchModel

    TorchModel.sm_count = lambda self: SMS  # type: ignore[method-assign]  # the resident is outside of MPS
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.gpu.check.stand_in "$@"\n')
        python.chmod(0o755)
        sys.executable = str(python)  # workers are started with it
        return resident.run(EngineOptions.parse(flags, "stand_in", ""), exec_resident.load)


def _worker(module: str, arguments: list[str]) -> None:
    from semipd_engine.worker.attach import TorchModel

    TorchModel.sm_count = lambda self: sms_seen()  # type: ignore[method-assign]  # asked in the worker, not before
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["-m", module, *arguments]:
            _worker(module, arguments)
        case flags:
            sys.exit(_resident(flags))
