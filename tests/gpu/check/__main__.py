"""``make gpu-check``: shows on one GPU, in one call and without a network, what no test elsewhere can show.

    python -m tests.gpu.check [--device cuda|cpu] [--out DIR] [--wheels DIR] [--probe FILE] [--resume] ...

Ten minutes at most. Each part is a process of its own with a time limit, and writes ``OUT/parts/NAME.json`` while it
runs; a part that fails or hangs keeps no other from running, and one that does not fit any more is skipped.
``--resume`` runs those that are not ok yet. At the end ``OUT/report.md`` and ``report.json`` are made: what was
measured beside what was promised and predicted, misses included. Exit status 1 if a part failed, 3 if there is no GPU.
``--device cpu`` is the dry run: every line but the device's runs, and no figure counts.

This file needs the standard library alone. What an image with Python and torch lacks comes from a folder of wheels
(``make gpu-wheels``, ``--wheels``). Where MPS cannot run it says why, and goes on with a worker for each rung and no
limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.gpu.check.catalogue import LEAVE_SECONDS, PARTS, PROBE, PROBE_SLACK, Part, allowance
from tests.gpu.check.presence import no_gpu
from tests.gpu.check.report import Outcome, Record, markdown
from tests.gpu.check.verdicts import PREDICTIONS, steps, targets

ROOT = Path(__file__).resolve().parents[3]
BUDGET_SECONDS = 585.0
NO_GPU_STATUS = 3


@dataclass
class Run:
    options: argparse.Namespace
    environment: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    records: list[Record] = field(default_factory=list)

    @property
    def left(self) -> float:
        return float(self.options.budget) - (time.monotonic() - self.began)

    @property
    def folder(self) -> Path:
        return Path(self.options.out) / "parts"

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s of {self.options.budget:.0f}] {text}", flush=True)

    def part(self, part: Part) -> None:
        path = self.folder / f"{part.name}.json"
        if self.options.resume and (before := Record.read(path)) is not None and before.outcome is Outcome.OK:
            self.say(f"{part.name}: ok already")
            self.records.append(before)
            return
        record = Record(part.name, part.claim)
        limit = allowance(part, self.left, self.options.patience)
        if part.name in PROBE and self.options.device == "cuda" and (why := no_gpu()):
            record.outcome, record.problem = Outcome.NO_GPU, why  # the others ask by themselves
        elif not limit:
            record.problem = f"{self.left:.0f} s are left, too few for it"
        else:
            self._run(part, path, limit)
            record = Record.read(path) or Record(part.name, part.claim, Outcome.FAILED, problem="it wrote nothing")
        record.write(path)
        told = record.problem if record.outcome is Outcome.NO_GPU else f"{record.outcome} {record.problem}".strip()
        self.say(f"{part.name}, {record.seconds:.1f} s: {told}")
        self.records.append(record)

    def _run(self, part: Part, path: Path, limit: float) -> None:
        """One part in a process of its own, ended after `limit` seconds; its record is complete afterwards."""
        path.unlink(missing_ok=True)
        self.say(f"{part.name}: {part.claim} (at most {limit:.0f} s)")
        began = time.monotonic()
        command = self._command(part, path, limit)
        process = subprocess.Popen(command, cwd=ROOT, env=self.environment, start_new_session=True)
        timed_out = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):  # whatever of it is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if part.name in PROBE:
            _probed(part, self._rows(part), process.returncode).write(path)
        record = Record.read(path) or Record(part.name, part.claim, Outcome.FAILED)
        record.seconds = round(time.monotonic() - began, 1)
        if timed_out:
            record.outcome, record.problem = Outcome.TIMED_OUT, f"ended after {limit:.0f} s: what it had seen is below"
        elif record.outcome in (Outcome.RUNNING, Outcome.SKIPPED) and not record.problem:
            record.outcome, record.problem = Outcome.FAILED, f"its process ended with {process.returncode}"
        record.write(path)

    def _rows(self, part: Part) -> Path:
        return Path(self.options.out) / f"{part.name}.json"

    def _command(self, part: Part, path: Path, limit: float) -> list[str]:
        options = self.options
        if part.name in PROBE:
            budget = str(max(1, int(limit - PROBE_SLACK)))
            command = [sys.executable, str(options.probe), "--out", str(self._rows(part)), "--budget", budget]
            return [*command, "--only", PROBE[part.name]]
        command = [sys.executable, "-m", "tests.gpu.check.part", part.name, "--device", options.device]
        command += ["--record", str(path), "--patience", str(options.patience), "--seconds", f"{limit:.1f}"]
        command += ["--smollm2", str(options.smollm2)] if options.smollm2 else []
        return command + (["--mps-probe", str(options.mps_probe)] if options.mps_probe else [])

    def finish(self) -> int:
        """Write the report. Exit status."""
        seconds = time.monotonic() - self.began
        predictions = json.loads(PREDICTIONS.read_text())
        promised, predicted = targets(self.records, predictions), steps(self.records, predictions)
        page = markdown(self.records, self.options.device, seconds, commit(), promised, predicted)
        out = Path(self.options.out)
        (out / "report.md").write_text(page)
        parts = [json.loads((self.folder / f"{record.name}.json").read_text()) for record in self.records]
        content = {"device": self.options.device, "commit": commit(), "seconds": round(seconds, 1), "parts": parts}
        content |= {"predictions": predictions["sha256"], "promised": promised, "predicted": predicted}
        (out / "report.json").write_text(json.dumps(content, indent=2))
        print(page)
        return status_of(self.records)


def status_of(records: list[Record]) -> int:
    """0: what ran is well. A machine without a GPU has a status of its own: nobody shall take it for a success."""
    outcomes = {record.outcome for record in records}
    if outcomes & {Outcome.FAILED, Outcome.TIMED_OUT}:
        return 1
    return NO_GPU_STATUS if Outcome.NO_GPU in outcomes else 0


def commit() -> str:
    """Of the archive, or of the clone."""
    try:
        return (ROOT / "COMMIT").read_text().strip()
    except OSError:
        pass
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _probed(part: Part, found: Path, status: int) -> Record:
    """The record of a probe, which writes rows of its own."""
    try:
        rows = json.loads(found.read_text())
    except (OSError, ValueError):
        return Record(part.name, part.claim, Outcome.FAILED, problem=f"no rows; it ended with {status}")
    errors = [f"{row.get('section')}: {row['error']}" for row in rows if "error" in row]
    figures = {"rows": len(rows), "file": found.name, "rows with an error": errors}
    return Record(part.name, part.claim, Outcome.OK, figures=figures)


def surroundings(wheels: Path | None, unpacked: Path) -> dict[str, str]:
    """The parts' environment: no MPS variables of others, and the repository and the wheels as packages.

    A `CUDA_MPS_PIPE_DIRECTORY` that an image or a shell has set would make our processes clients of it, or of nobody.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_MPS_")}
    packages = [str(ROOT), *(str(ROOT / room) for room in ("agent", "engine"))]
    if wheels is not None:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        packages.append(str(unpacked))
    before = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
    return environment | {"PYTHONPATH": os.pathsep.join([*before, *packages]), "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: dry run")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", help="folder of the report; %(default)s")
    parser.add_argument("--wheels", type=Path, help="folder that `make gpu-wheels` filled")
    parser.add_argument("--probe", type=Path, help="a program, FILE --out JSON --budget SECONDS --only NAMES")
    parser.add_argument("--smollm2", type=Path, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("--resume", action="store_true", help="run only the parts that are not ok yet")
    parser.add_argument("--only", default="", help="parts by name, with commas between them")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds in all; %(default)s")
    parser.add_argument("--mps-probe", type=Path, help="with --device cpu: the probe's stand-in; then MPS is one, too")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of all limits, for a machine that is busy")
    options = parser.parse_args()
    for name in ("out", "probe", "smollm2", "mps_probe"):  # the parts run elsewhere
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.resolve())
    options.budget *= options.patience
    only = [name for name in options.only.split(",") if name]
    if unknown := set(only) - {part.name for part in PARTS}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in PARTS)}")
    (options.out / "parts").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-wheels-") as unpacked:
        run = Run(options, surroundings(options.wheels, Path(unpacked)))
        for part in PARTS:
            wanted = part.name in only if only else part.dry or options.device == "cuda"
            lacks_file = (part.name in PROBE and not options.probe) or (
                part.name == "exact-smollm2" and not options.smollm2
            )
            if wanted and not lacks_file:
                run.part(part)
        return run.finish()


if __name__ == "__main__":
    sys.exit(main())
