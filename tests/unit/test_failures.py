"""The table of failures: each name in it is code that ships, each test is one that pytest collects, no row lacks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hack.generate.failures import FAILURES, Failure
from semipd_agent.contract import PartitionReason
from semipd_agent.partitioner.mps import green
from semipd_agent.partitioner.mps.preflight import POLICIES
from semipd_engine.contract import EngineOptions
from semipd_engine.launcher import default_commands

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
NO_FAILURE = {
    PartitionReason.APPLIED,
    PartitionReason.DISABLED,
    PartitionReason.ADJUSTING,
    PartitionReason.ENGINE_NOT_READY,
    PartitionReason.NO_CPUS,  # of a CPU
}
OUTCOMES = " ".join(one.outcome for one in FAILURES)


@pytest.mark.parametrize("one", FAILURES, ids=lambda one: one.what[:50])
def test_detector_and_handler_are_code_that_ships(one: Failure) -> None:
    for symbol in (one.detector, one.handler):
        module, _, name = symbol.partition(":")
        assert module.startswith(("semipd_engine.", "semipd_agent."))
        found: object = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        assert callable(found), symbol
    assert one.outcome and one.tests


def test_each_test_is_there_to_be_run() -> None:
    """Neither renamed, nor skipped where there is no GPU."""
    tests = sorted({test for one in FAILURES for test in one.tests})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    collected = {line.partition("[")[0] for line in done.stdout.splitlines()}
    assert set(tests) <= collected, set(tests) - collected
    for test in tests:
        file, _, name = test.partition("::")
        head = (ROOT / file).read_text().partition(f"def {name}(")[0].rpartition("\n\n\n")[2]
        assert "skip" not in head and "xfail" not in head, test


def test_the_page_has_the_rows_of_the_table() -> None:
    page = (ROOT / "docs/gpu/failures.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row != "what fails"]
    assert sorted(rows) == sorted({one.what for one in FAILURES}) and len(rows) == len(FAILURES)


def test_every_process_of_a_pod_has_a_row_for_its_death(tmp_path: Path) -> None:
    engine = default_commands(EngineOptions(model=tmp_path, run_dir=tmp_path))
    others = {"agent", "launcher", "worker", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"}
    assert sorted(one.process for one in FAILURES if one.process) == sorted({*engine, *others})


def test_every_refusal_and_every_reason_of_a_failure_has_a_row() -> None:
    assert {reason for reason, _ in POLICIES} <= set(PartitionReason) - NO_FAILURE
    reasons = {reason.value for reason in set(PartitionReason) - NO_FAILURE} | set(green.REMEDIES)
    missing = {reason for reason in reasons if not re.search(rf"\b{reason}\b", OUTCOMES)}
    assert not missing
