"""A run of a long test leaves what it found in `docs/evidence/long.json`, by its name: date, commit, outcome, figures.

Of a test that is run again the newest run stands there, be it alone or with the others.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.cpu.identity import commit, machine

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence" / "long.json"
COMMIT = commit()
"""As the run began: what it writes itself changes the tree."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" or not report.nodeid.startswith("tests/long/"):
        return
    run: dict[str, Any] = {"date": datetime.date.today().isoformat(), "commit": COMMIT}
    run |= {"machine": machine(), "load": round(os.getloadavg()[0], 1)}
    run |= {"outcome": report.outcome, "seconds": round(report.duration, 1)}
    found = {name: _value(value) for name, value in report.user_properties}
    tests = json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else {}
    tests[report.nodeid.removeprefix("tests/long/")] = run | ({"found": found} if found else {})
    EVIDENCE.write_text(json.dumps(dict(sorted(tests.items())), indent=1) + "\n")


def _value(value: Any) -> Any:
    """Objects are recorded as JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
