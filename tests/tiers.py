"""Runs the test tiers one after the other and prints a table of what ran, what was skipped, and the seconds.

`python tests/tiers.py [TIER ...]`. Exits non-zero if a test failed, or if any tier but gpu ran no test or skipped one:
a tier that cannot run here is a failure of the machine's set-up, said in one line, not a quiet pass. While the light
tiers run, Debian packages, the Kubernetes programs and then the images are made beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("unit", "kopf", "engine", "api", "node", "gpu")
MAY_SKIP = {"gpu"}
NEEDS = {"api": ("tools",), "node": ("deps", "tools", "images")}
"""Prerequisites that are built before a tier starts."""
QUIET = {"engine"}
"""Tiers that compare rates: they wait until nothing is being built beside them."""
SIDE_BY_SIDE = {"unit": ("-n", "2", "--dist", "loadfile")}
"""Tiers whose files may run beside each other: they share nothing, and spend half of their time waiting."""
BUILDERS = {
    "deps": [sys.executable, "e2e/cluster/cluster", "deps"],
    "tools": [sys.executable, "e2e/cluster/tools", "build"],
    "images": [sys.executable, "images/build"],
}


@dataclass(frozen=True)
class Outcome:
    """Counts of one tier; `passed + failed + skipped` tests were collected."""

    tier: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    note: str = ""

    @property
    def ok(self) -> bool:
        if self.failed:
            return False
        return self.tier in MAY_SKIP or (self.passed > 0 and self.skipped == 0)


def parse_junit(path: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) from pytest's JUnit XML; errors count as failures."""
    passed = failed = skipped = 0
    for suite in ET.parse(path).getroot().iter("testsuite"):
        tests, bad = int(suite.get("tests", 0)), int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skips = int(suite.get("skipped", 0))
        passed, failed, skipped = passed + tests - bad - skips, failed + bad, skipped + skips
    return passed, failed, skipped


def run_tier(tier: str, arguments: list[str]) -> Outcome:
    """Run one tier's tests with pytest, its output going straight to the terminal."""
    print(f"\n=== {tier} ".ljust(100, "="), flush=True)
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", tier, f"--junitxml={report}"]
        command += [*SIDE_BY_SIDE.get(tier, ()), *arguments]
        code = subprocess.run(command, cwd=ROOT).returncode
        passed, failed, skipped = parse_junit(report) if report.exists() else (0, 1, 0)
    if code not in (0, 1, 5):  # 0: passed, 1: tests failed, 5: no test collected; anything else: pytest itself failed
        failed = max(failed, 1)
    return Outcome(tier, passed, failed, skipped, time.monotonic() - began, "no tests" if code == 5 else "")


class Builds:
    """The prerequisites, built one after the other beside the tiers that do not need them."""

    def __init__(self, names: list[str]) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.results = {name: self.pool.submit(self.build, name) for name in names}

    def build(self, name: str) -> int:
        process = subprocess.Popen(["nice", "-n", "5", *BUILDERS[name]], cwd=ROOT)
        self.processes.append(process)
        return process.wait()

    def require(self, names: tuple[str, ...]) -> str:
        """Wait until the named ones are built. Returns a message if one failed, else nothing."""
        for name in names:
            if self.results[name].result() != 0:
                return f"`{' '.join(BUILDERS[name][1:])}` failed; run it by itself to see why"
        return ""

    def settle(self) -> None:
        """Wait until every build is over, well or not."""
        for result in self.results.values():
            result.exception()

    def stop(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:
            if process.poll() is None:
                process.terminate()


def table(outcomes: list[Outcome]) -> str:
    rows = [f"{'tier':8}{'ran':>7}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for o in outcomes:
        state = "" if o.ok else "  FAIL" + (f" ({o.note})" if o.note else "")
        rows.append(f"{o.tier:8}{o.passed + o.failed:>7}{o.failed:>8}{o.skipped:>9}{o.seconds:>9.0f}{state}")
    return "\n".join(rows)


def main() -> int:
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or list(TIERS)
    if unknown := set(wanted) - set(TIERS):
        print(f"unknown tier {', '.join(sorted(unknown))}; there are {', '.join(TIERS)}", file=sys.stderr)
        return 2
    arguments = [a for a in sys.argv[1:] if a.startswith("-")]
    needed = [name for name in BUILDERS if any(name in NEEDS.get(tier, ()) for tier in wanted)]
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    builds = Builds(needed)
    outcomes = []
    try:
        for tier in wanted:
            if tier in QUIET:
                builds.settle()
            if problem := builds.require(NEEDS.get(tier, ())):
                print(f"{tier}: {problem}", file=sys.stderr)
                outcomes.append(Outcome(tier, 0, 1, 0, 0.0, problem))
                continue
            outcomes.append(run_tier(tier, arguments))
    finally:
        builds.stop()
    print("\n" + table(outcomes))
    passed, failed = sum(o.passed for o in outcomes), sum(o.failed for o in outcomes)
    print(f"{passed} passed, {failed} failed, {sum(o.skipped for o in outcomes)} skipped")
    return 0 if all(o.ok for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
