"""Runs the test tiers in rounds and prints a table of what ran, what was skipped, and the seconds.

`python tests/tiers.py [TIER ...] [PYTEST OPTION ...]`. Exits non-zero if a test failed, or if any tier but gpu ran no
test or skipped one: a tier that cannot run here is a failure of the machine's set-up, said in one line, not a quiet
pass. While the light tiers run, Debian packages, the Kubernetes programs and then the images are made beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = (("unit", "kopf", "api"), ("engine",), ("node",), ("gpu",), ("long",))
"""Tiers of a round run beside each other: they spend more time waiting than computing."""
WHEN_ASKED = {"long"}
"""Tiers that run only if they are named."""
TIERS = tuple(tier for tiers in ROUNDS for tier in tiers)
MAY_SKIP = {"gpu"}
NEEDS = {"api": ("tools",), "node": ("deps", "tools", "images")}
"""Prerequisites that are built before a tier starts."""
QUIET = {"engine"}
"""Tiers that compare rates: they wait until nothing is being built beside them."""
BESIDE = ("-n", "2", "--dist", "loadfile")
"""Test files in two processes."""
PASSES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "unit": (("unit", BESIDE),),
    "engine": (("engine and not alone", BESIDE), ("engine and alone", ())),
    "long": (("long", ("--hypothesis-profile=random",)),),
}
"""Runs of pytest that make up a tier, as (marker expression, options); a tier that is not here is one run."""
BUILDERS = {
    "deps": [sys.executable, "hack/cluster/cluster", "deps"],
    "tools": [sys.executable, "hack/cluster/tools", "build"],
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


def run_tier(tier: str, arguments: list[str], builds: Builds, output: IO[str] | None = None) -> Outcome:
    """Run one tier's tests once its prerequisites are built; what it prints goes to `output` (None: the terminal)."""
    if problem := builds.require(NEEDS.get(tier, ())):
        print(f"{tier}: {problem}", file=sys.stderr)
        return Outcome(tier, 0, 1, 0, 0.0, problem)
    print(f"\n=== {tier} ".ljust(100, "="), file=output, flush=True)
    began = time.monotonic()
    passed = failed = skipped = 0
    empty = True
    for expression, options in PASSES.get(tier, ((tier, ()),)):
        code, ok, bad, skips = run_pytest(["-m", expression, *options, *arguments], output)
        if code not in (0, 1, 5):  # 0: passed, 1: tests failed, 5: no test collected; anything else: pytest failed
            bad = max(bad, 1)
        passed, failed, skipped = passed + ok, failed + bad, skipped + skips
        empty = empty and code == 5
    return Outcome(tier, passed, failed, skipped, time.monotonic() - began, "no tests" if empty else "")


def run_pytest(arguments: list[str], output: IO[str] | None) -> tuple[int, int, int, int]:
    """(exit status, passed, failed, skipped) of one run."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "--durations-min=15"]
        command += [f"--junitxml={report}", *arguments]
        threads = {"OMP_NUM_THREADS": "1"} if "-n" in arguments else {}
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, env=os.environ | threads).returncode
        return code, *(parse_junit(report) if report.exists() else (0, 1, 0))


def run_round(tiers: list[str], arguments: list[str], builds: Builds) -> list[Outcome]:
    """Run tiers beside each other. The first one writes to the terminal, the others once they are over."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=len(tiers)))
        files = [stack.enter_context(TemporaryFile("w+")) for _ in tiers[1:]]
        others = [
            pool.submit(run_tier, tier, arguments, builds, file) for tier, file in zip(tiers[1:], files, strict=True)
        ]
        outcomes = [run_tier(tiers[0], arguments, builds)]
        for other, file in zip(others, files, strict=True):
            outcomes.append(other.result())
            file.seek(0)
            print(file.read(), end="", flush=True)
        return outcomes


def table(outcomes: list[Outcome]) -> str:
    rows = [f"{'tier':8}{'ran':>7}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for o in outcomes:
        state = "" if o.ok else "  FAIL" + (f" ({o.note})" if o.note else "")
        rows.append(f"{o.tier:8}{o.passed + o.failed:>7}{o.failed:>8}{o.skipped:>9}{o.seconds:>9.0f}{state}")
    return "\n".join(rows)


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or [tier for tier in TIERS if tier not in WHEN_ASKED]
    if unknown := set(wanted) - set(TIERS):
        print(f"unknown tier {', '.join(sorted(unknown))}; there are {', '.join(TIERS)}", file=sys.stderr)
        return 2
    arguments = [a for a in sys.argv[1:] if a.startswith("-")]
    needed = [name for name in BUILDERS if any(name in NEEDS.get(tier, ()) for tier in wanted)]
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    builds = Builds(needed)
    outcomes = []
    try:
        for together in ROUNDS:
            tiers = [tier for tier in together if tier in wanted]
            if QUIET.intersection(tiers):
                builds.settle()
            if tiers:
                outcomes += run_round(tiers, arguments, builds)
    finally:
        builds.stop()
    print("\n" + table(outcomes))
    passed, failed = sum(o.passed for o in outcomes), sum(o.failed for o in outcomes)
    print(f"{passed} passed, {failed} failed, {sum(o.skipped for o in outcomes)} skipped")
    return 0 if all(o.ok for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
