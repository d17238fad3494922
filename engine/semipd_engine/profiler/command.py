"""``semipd-engine profile``: measures step times by phase, split, batch and context, and writes them to a file.

On a GPU, splits other than 100/100 are measured where CUDA_MPS_PIPE_DIRECTORY names a running MPS daemon; without one
what a share does stays assumed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from semipd_engine.contract import Device, DType, EngineOptions, ProfileKey, Split, StepProfileFile, processor
from semipd_engine.contract.options import said
from semipd_engine.hub.check import weights_refusal
from semipd_engine.process import REFUSED
from semipd_engine.profiler.processes import EngineFailed, Processes, running, shares_hold
from semipd_engine.profiler.sweep import SPLITS, Stalled, points, sweep


def profile(options: EngineOptions, progress: bool = True) -> StepProfileFile:
    """Raises `EngineFailed`, `Stalled`."""
    with running(options) as engine:
        return _measured(engine, progress)


def _measured(engine: Processes, progress: bool) -> StepProfileFile:
    from tqdm import tqdm

    ready = engine.start()
    model = ready.model
    assert model is not None  # `start` waits for it
    splits = [Split(prefill=x, decode=y) for x, y in SPLITS]
    if not shares_hold(model.device):
        splits = [Split()]
    all_points = points(engine.limits(ready), splits)
    began = time.monotonic()
    with tqdm(total=len(all_points), desc="profile", unit="point", disable=not progress) as bar:
        steps = sweep(engine, all_points, lambda _: bar.update())
    return StepProfileFile(
        key=ProfileKey.of(model, len(engine.grant.cpus), engine.grant.throttled),
        model=model.name,
        machine=_machine(model.device),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        steps=steps,
    )


def _machine(device: str) -> str:
    if device == Device.CPU:
        return processor()
    import torch

    return torch.cuda.get_device_name()


def add_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("profile", help="measure step times on this machine", description=__doc__)
    parser.add_argument("model", type=Path, help="Hugging Face model folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--device", type=Device, choices=list(Device), default=Device.AUTO)
    parser.add_argument("--dtype", type=DType, choices=list(DType), default=DType.AUTO)
    parser.add_argument("--max-model-len", type=int, default=0, help="as it is served; 0: the model's")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="as it is served")
    parser.add_argument(
        "--kv-cache-memory", type=int, default=0, help="bytes of the KV pool; 0: a part of the free memory"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(func=_run)


def _run(arguments: argparse.Namespace) -> int:
    if problem := weights_refusal(arguments.model):
        return _refused(problem)
    if problem := _unwritable(arguments.out):
        return _refused(problem)
    with tempfile.TemporaryDirectory(prefix="semipd-profile-") as folder:
        try:
            options = EngineOptions(
                model=arguments.model,
                device=arguments.device,
                dtype=arguments.dtype,
                max_model_len=arguments.max_model_len,
                max_num_seqs=arguments.max_num_seqs,
                kv_cache_memory=arguments.kv_cache_memory,
                prefix_caching=False,
                await_partition=True,
                run_dir=Path(folder),
            )
            found = profile(options, not arguments.quiet)
            _write(arguments.out, found)
        except ValidationError as error:
            return _refused(said(error))
        except (EngineFailed, Stalled, OSError, ValueError) as error:
            print(f"semipd-engine profile: {error}", file=sys.stderr)
            return 1
    count = sum(times.steps for times in found.steps)
    print(f"{arguments.out}: {count} steps of {found.model} on {found.machine}, {found.seconds:.0f} s")
    return 0


def _unwritable(out: Path) -> str:
    """Said before minutes of measuring, not after."""
    if out.is_dir():
        return f"--out {out}: is a folder; name a file in it"
    if not out.parent.is_dir():
        return f"--out {out}: there is no folder {out.parent}"
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            return ""
    except OSError as error:
        return f"--out {out}: nothing can be written into {out.parent}: {error.strerror}"


def _write(out: Path, found: StepProfileFile) -> None:
    """Whole or not at all: an agent may look for profiles at any time."""
    with tempfile.NamedTemporaryFile("w", dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
        file.write(found.model_dump_json(indent=1) + "\n")
    new = Path(file.name)
    new.chmod(0o644)
    new.replace(out)


def _refused(problem: str) -> int:
    print(f"semipd-engine profile: {problem}", file=sys.stderr)
    return REFUSED
