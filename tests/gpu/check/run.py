"""One call of the check: each part in a process of its own, within the time that is left, and a report of all.

Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.gpu.check.catalogue import LEAVE_SECONDS, PARTS, PROBE, PROBE_SLACK, Part, allowance
from tests.gpu.check.circumstances import ROOT
from tests.gpu.check.ending import Interruption, end, wait
from tests.gpu.check.presence import no_gpu
from tests.gpu.check.report import Call, Outcome, Record, write_report
from tests.gpu.check.verdicts import PREDICTIONS, steps, targets

NO_GPU_STATUS = 3


@dataclass
class Run:
    options: argparse.Namespace
    environment: dict[str, str]
    circumstances: Mapping[str, str]
    interruption: Interruption
    packages: Path | None = None
    """Of the wheels."""
    began: float = field(default_factory=time.monotonic)
    records: list[Record] = field(default_factory=list)

    @property
    def left(self) -> float:
        return float(self.options.budget) - (time.monotonic() - self.began)

    @property
    def folder(self) -> Path:
        return Path(self.options.out) / "parts"

    def say(self, text: str) -> None:
        tell(f"[{time.monotonic() - self.began:4.0f} s of {self.options.budget:.0f}] {text}")

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
        try:
            ended = wait(process, limit, given_up=lambda: self.interruption.signal is not None)
            interrupted = self.interruption.signal if not ended else None
            if not ended:
                self.say(f"{part.name}: is asked to end, and killed if it has not within {LEAVE_SECONDS:.0f} s")
        finally:
            end(process, LEAVE_SECONDS)
        if part.name in PROBE:
            _probed(part, self._rows(part), process.returncode).write(path)
        record = Record.read(path) or Record(part.name, part.claim, Outcome.FAILED)
        record.seconds = round(time.monotonic() - began, 1)
        if interrupted is not None:
            record.outcome, record.problem = Outcome.INTERRUPTED, f"by {interrupted.name}: what it had seen is below"
        elif not ended:
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
        command += ["--packages", str(self.packages)] if self.packages else []
        return command + (["--mps-probe", str(options.mps_probe)] if options.mps_probe else [])

    def finish(self) -> int:
        """Write the report, with what an earlier call found out of parts that this one left alone. Exit status."""
        mine = {record.name: record for record in self.records}
        found = [mine.get(part.name) or Record.read(self.folder / f"{part.name}.json") for part in PARTS]
        records = [record for record in found if record is not None]
        call = Call(
            self.circumstances,
            time.monotonic() - self.began,
            frozenset(record.name for record in records if record.name not in mine),
            self.interruption.signal.name if self.interruption.signal is not None else "",
        )
        predictions = json.loads(PREDICTIONS.read_text())
        promised, predicted = targets(records, predictions), steps(records, predictions)
        out = Path(self.options.out)
        tell(write_report(out, records, call, promised, predicted, predictions["sha256"]))
        return self.interruption.status or status_of(self.records)


def tell(text: str) -> None:
    """Print. Whoever read it may have gone, with a terminal or a pipe: the report is made all the same."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def status_of(records: list[Record]) -> int:
    """0: what ran is well, and something did. Nobody shall take a machine without a GPU, or a call that ran nothing,
    for a success."""
    outcomes = {record.outcome for record in records}
    if outcomes & {Outcome.FAILED, Outcome.TIMED_OUT}:
        return 1
    return NO_GPU_STATUS if Outcome.NO_GPU in outcomes or Outcome.OK not in outcomes else 0


def _probed(part: Part, found: Path, status: int) -> Record:
    """The record of a probe, which writes rows of its own."""
    try:
        rows = json.loads(found.read_text())
    except (OSError, ValueError):
        return Record(part.name, part.claim, Outcome.FAILED, problem=f"no rows; it ended with {status}")
    errors = [f"{row.get('section')}: {row['error']}" for row in rows if "error" in row]
    figures = {"rows": len(rows), "file": found.name, "rows with an error": errors}
    return Record(part.name, part.claim, Outcome.OK, figures=figures)
