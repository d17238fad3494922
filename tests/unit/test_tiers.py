"""A tier that ran nothing, or skipped a test, is no success; only the gpu tier may do either."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiers import Outcome, main, parse_junit, table

pytestmark = pytest.mark.unit

SUITES = """<testsuites><testsuite tests="7" failures="1" errors="1" skipped="2"/></testsuites>"""


def test_errors_count_as_failures(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text(SUITES)
    assert parse_junit(report) == (3, 2, 2)


@pytest.mark.parametrize(
    ("tier", "passed", "failed", "skipped", "ok"),
    [
        ("unit", 5, 0, 0, True),
        ("unit", 5, 1, 0, False),
        ("engine", 0, 0, 0, False),
        ("node", 5, 0, 1, False),
        ("gpu", 0, 0, 30, True),
        ("gpu", 0, 0, 0, True),
        ("gpu", 30, 1, 0, False),
    ],
)
def test_what_is_a_success(tier: str, passed: int, failed: int, skipped: int, ok: bool) -> None:
    outcome = Outcome(tier, passed, failed, skipped, 1.0)
    assert outcome.ok is ok
    assert ("FAIL" in table([outcome])) is not ok


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_who_asks_for_help_gets_help(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tiers.py", flag])
    monkeypatch.setattr("tests.tiers.Builds", None)
    assert main() == 0
    assert "tests/tiers.py [TIER ...]" in capsys.readouterr().out
