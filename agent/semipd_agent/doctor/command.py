"""``semipd-agent doctor``: prints the doctor's rows as a table or as JSON. Exit status 1 where one of them fails."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from semipd_agent.doctor.checks import Grade, Row, examine
from semipd_agent.doctor.machine import this_machine
from semipd_agent.partitioner.mps.preflight import default_base
from semipd_agent.partitioner.mps.programs import Programs
from semipd_engine.contract import Device


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="semipd doctor", description="Can this machine serve? ok, warn or fail.")
    parser.add_argument("--device", type=Device, default=Device.AUTO, choices=list(Device), help="what is to serve")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--trial", action="store_true", help="also start MPS for a moment, and measure its limits")
    parser.add_argument("--mps-dir", type=Path, default=None, help="where MPS daemons have their directories (short)")
    return parser


def doctor(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    base = options.mps_dir or default_base()
    machine = this_machine(base)
    rows = examine(machine, options.device)
    has_gpu = machine.host.gpu is not None or machine.host.device_files
    if options.trial and has_gpu and not any(row.grade is Grade.FAIL for row in rows):
        from semipd_agent.doctor.trial import try_mps

        rows.append(try_mps(Programs.find(), base))
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))
    return 1 if any(row.grade is Grade.FAIL for row in rows) else 0


def table(rows: Sequence[Row]) -> str:
    width = max(len(row.check) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.grade:<4}  {row.check:<{width}}  {row.found}")
        if row.remedy:
            lines.append(f"{'':<{width + 6}}  -> {row.remedy}")
    return "\n".join(lines)
