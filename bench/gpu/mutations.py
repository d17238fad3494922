"""How many seeded defects of the GPU path are found without a GPU (``make gpu-mutations``): docs/gpu/mutations.md.

Each of `bench.gpu.defects` is made in a copy of the source tree, and its tests run there: found if they fail. First all
of those tests must pass without a defect. ``ARGS="--only TEXT"`` takes some; results are kept in out/gpu/mutations.json
as they come, and a second run goes on where the first was: a defect that survived is tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bench import kept
from bench.gpu.defects import DEFECTS, Defect
from bench.usage import guarded, number
from semipd_engine.usage import Parser

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "out" / "gpu" / "mutations.json"
PAGE = ROOT / "docs" / "gpu" / "mutations.md"
ROOMS = ("engine", "agent", "operator", "cli")
FIRST = ("--hypothesis-profile", "first")
SECONDS = 400
"""For the tests of one defect, and at least three times what they take without it, so that a machine that is busy finds
nothing: one that hangs is found as well."""
ENDED = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
"""By somebody else: what a defect may bring about is a crash."""
WITHOUT_SECONDS = 1800
"""For the same tests without a defect."""


def mutated(source: str, defect: Defect) -> str:
    """Raises ValueError unless the right expression is there, once."""
    if source.count(defect.right) != 1:
        raise ValueError(f"{defect.file}: {defect.right!r} is there {source.count(defect.right)} times")
    return source.replace(defect.right, defect.wrong)


def copied(folder: Path) -> Path:
    """The tracked files, and what is built among them."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "engine").rglob("*.so")]
    for name in (*listed.stdout.splitlines(), *built):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def passes(folder: Path, tests: str, seconds: float) -> bool:
    paths = os.pathsep.join(str(folder / room) for room in ROOMS)
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *FIRST, *shlex.split(tests)]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        tqdm.write(f"hung for {seconds:.0f} s: pytest {tests}")
        return False
    if done.returncode > 1 or -done.returncode in ENDED:  # not a failure but no run
        raise RuntimeError(f"pytest {tests} ended with {done.returncode}: {done.stdout.decode()[-2000:]}")
    return done.returncode == 0


def page(found: dict[str, bool]) -> str:
    caught = sum(found.values())
    lines = [
        "# Seeded defects of the GPU path",
        "",
        "<!-- made by `make gpu-mutations` from bench/gpu/defects/ -->",
        "",
        f"**{caught} of {len(found)} found** by tests that need no GPU. Each is one expression changed in a copy of",
        "the tree; the tests named beside it must fail then. What survives is a test that is missing.",
        "",
        "| kind | file | defect | tests | found |",
        "|---|---|---|---|---|",
    ]
    for one in DEFECTS:
        if one.key in found:
            verdict = "yes" if found[one.key] else "**no**"
            cells = (one.kind, one.file.split("/", 1)[1], one.name, f"`{one.tests}`", verdict)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="bench.gpu.mutations", description=__doc__)
    parser.add_argument("--only", type=defects, default="", help="defects whose file, kind or name holds this text")
    parser.add_argument("--seconds", type=number, default=3600, help="begin no other after so many; %(default)s")
    parser.add_argument("--again", action="store_true", help="forget the results of earlier runs")
    options = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(options), "; the same command goes on from here")


def defects(text: str) -> list[Defect]:
    if not (chosen := [one for one in DEFECTS if text in f"{one.file} {one.kind} {one.name}"]):
        raise argparse.ArgumentTypeError(f"{text}: no defect's file, kind or name holds it; {PAGE} lists them")
    return chosen


def carried_out(options: argparse.Namespace) -> int:
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    found = {} if options.again else kept.read(KEPT, "give --again")
    ends = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="semipd-mutations-") as name:
        folder = copied(Path(name))
        missing = [one for one in options.only if not found.get(one.key)]
        limits = dict[str, float]()
        for tests in dict.fromkeys(one.tests for one in missing):
            began = time.monotonic()
            sound = passes(folder, tests, WITHOUT_SECONDS)
            limits[tests] = max(SECONDS, 3 * (time.monotonic() - began))
            if not sound:
                print(f"without a defect, this does not pass: pytest {tests}", file=sys.stderr)
                return 1
        for one in tqdm(missing, unit="defect"):
            if time.monotonic() > ends:
                break
            path = folder / one.file
            right = path.read_text()
            path.write_text(mutated(right, one))
            try:
                found[one.key] = not passes(folder, one.tests, limits[one.tests])
            finally:
                path.write_text(right)
            KEPT.write_text(json.dumps(found, indent=1))
            if not found[one.key]:
                tqdm.write(f"survived: {one.file}: {one.name}")
    if all(one.key in found for one in DEFECTS):
        PAGE.write_text(page({one.key: found[one.key] for one in DEFECTS}))
    print(f"{sum(found.values())} of {len(found)} found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
