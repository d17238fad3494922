"""``python -m tests.gpu.check.part NAME --device DEVICE --record FILE``: one part of the check, in this process.

SIGTERM ends it as an error would: engine and daemon are stopped, and the record keeps what was seen.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tests.gpu.check.catalogue import named
from tests.gpu.check.presence import NEEDED, lacking, no_gpu
from tests.gpu.check.report import Keeping, Outcome, Record, Skip

from semipd_engine.resident.cuda_environment import without_mps

if TYPE_CHECKING:
    from tests.gpu.check.stage import Figures, Stage


class OutOfTime(BaseException):
    pass


class NoGpu(Exception):
    pass


def _terminated(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


def play(part: str, stage: Stage, figures: Figures) -> None:
    """Raises what the part raises. Imports what the part needs and no more: torch alone takes seconds."""
    family, _, model = part.partition("-")
    if family == "graphs":
        os.environ["SEMIPD_GPU_GRAPHS"] = "1"  # for the workers
    match family:
        case "machine" | "mps" | "memory" | "rungs":
            from tests.gpu.check import device_parts

            parts = {"machine": device_parts.machine, "mps": device_parts.mps}
            parts |= {"memory": device_parts.memory, "rungs": device_parts.rates}
            parts[family](stage, figures)
        case "kernels":
            from tests.gpu.check.kernel_parts import kernels

            kernels(stage, figures)
        case "green":
            from tests.gpu.check.green_parts import green

            green(stage, figures)
        case "large" | "graphs" if model != "exact":
            from tests.gpu.check.large_parts import large

            large(stage, model, figures)
        case "goodput":
            from tests.gpu.check.goodput_parts import goodput

            goodput(stage, figures)
        case "switches" | "shares":
            from tests.gpu.check.serving_parts import shares, switches

            (shares if family == "shares" else switches)(stage, figures)
        case "exact" | "graphs" | "kills":
            from tests.gpu.check.token_parts import exact, kills

            model = "qwen2" if family == "graphs" else model
            kills(stage, figures) if family == "kills" else exact(stage, stage.model(model), figures)
        case _:
            raise ValueError(f"no part {part}")


def here(wheels: Path | None, figures: Figures) -> str:
    """A run without a GPU loads nothing, so this part loads what the others would: the wheels' packages, or those that
    are installed. What of the image's is missing, for the end of a line. Raises ImportError."""
    from tests.gpu.check.packages import IMAGE, image, load, modules

    names = modules(wheels) if wheels is not None else [name for name in NEEDED if name not in IMAGE]
    figures["packages that load"], wrong = load(names)
    if wrong:
        figures["packages that do not"] = wrong
        raise ImportError("; ".join(wrong))
    return f"; not here: {', '.join(absent)}" if (absent := image()) else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check.part")
    parser.add_argument("name")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--patience", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--mps-probe", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    signal.signal(signal.SIGTERM, _terminated)
    environment = without_mps(os.environ)  # this process looks at the GPU from outside MPS
    os.environ.clear()
    os.environ.update(environment)
    part = named(options.name)
    record = Record(part.name, part.claim, Outcome.RUNNING)
    began = time.monotonic()
    with Keeping(record, options.record):
        try:
            if options.device == "cuda" and (why := no_gpu()):
                raise NoGpu(why + (here(options.packages, record.figures) if part.name == "machine" else ""))
            if why := lacking():
                raise ImportError(why)
            from tests.gpu.check import engine
            from tests.gpu.check.stage import Stage

            engine.patience = options.patience
            with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
                more = (options.mps_probe, options.smollm2, options.seconds)
                stage = Stage(options.device, Path(folder), options.record.parent, *more)
                try:
                    play(part.name, stage, record.figures)
                finally:
                    stage.close()
            record.outcome = Outcome.OK
        except NoGpu as why_not:
            record.outcome, record.problem = Outcome.NO_GPU, str(why_not)
        except Skip as reason:
            record.outcome, record.problem = Outcome.SKIPPED, str(reason)
        except OutOfTime:
            record.outcome = Outcome.TIMED_OUT
        except Exception as error:
            record.outcome, record.problem = Outcome.FAILED, f"{type(error).__name__}: {error}"
            traceback.print_exc()
        record.seconds = round(time.monotonic() - began, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
