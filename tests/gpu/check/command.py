"""``make gpu-check``: shows on one GPU, in one call and without a network, what no test elsewhere can show.

    python -m tests.gpu.check [--device cuda|cpu] [--out DIR] [--wheels DIR] [--probe FILE] [--resume] ...

Ten minutes at most. Each part is a process of its own with a time limit, and writes ``OUT/parts/NAME.json`` while it
runs; a part that fails or hangs keeps no other from running, and one that does not fit any more is skipped.
``--resume`` runs those that are not ok yet. At the end ``OUT/report.md`` and ``report.json`` are made: what was
measured beside what was promised and predicted, misses included; of parts that this call left alone they have what an
earlier one found. ``--device cpu`` is the dry run: every line but the device's runs, and no figure counts.

SIGINT (Ctrl-C) and SIGTERM end the part that runs, what it started included, and then the report is made.

Exit status: 0 all that ran is well; 1 a part failed; 2 wrong flags, wheels or folder; 3 nothing was shown, for want of
a GPU or because no part ran; 130 and 143 interrupted. Needs the standard library alone. What an image with Python and
torch lacks comes from a folder of wheels (``make gpu-wheels``, ``--wheels``). Where MPS cannot run it says why, and
goes on with a worker for each rung and no limit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.check.catalogue import PARTS, PROBE, Part
from tests.gpu.check.circumstances import ROOT, circumstances, settle
from tests.gpu.check.ending import Interruption
from tests.gpu.check.run import Run, tell
from tests.gpu.check.surroundings import no_bytecode_left, surroundings
from tests.gpu.check.wheelhouse import Unusable, unpack

BUDGET_SECONDS = 585.0
SHOWS = "Shows on one GPU, in one call and without a network, what no test elsewhere can show."
WORDS = {
    1: "a part failed, or did not end in time",
    3: "nothing was shown: there is no GPU here, or no part ran",
    130: "interrupted (SIGINT)",
    143: "interrupted (SIGTERM)",
}


def main(prog: str, out: Path = ROOT / "out" / "gpu", wheels: Path | None = None, given: Sequence[str] = ()) -> int:
    """`out` and `wheels`: where nothing else is given. `given`: flags; empty: the process' own."""
    options, wanted = _parsed(prog, out, wheels, given or sys.argv[1:])
    interruption = Interruption()
    try:
        _writable(options.out)
        with tempfile.TemporaryDirectory(prefix="gpu-check-wheels-") as folder, no_bytecode_left(ROOT):
            packages = Path(folder) if options.wheels is not None else None
            if packages is not None:
                unpack(options.wheels, packages)
            now = circumstances(options.device, packages)
            if said := settle(options.out, now):
                tell(said)
            run = Run(options, surroundings(packages), now, interruption, packages)
            for part in wanted:
                if interruption.signal is None:
                    run.part(part)
            status = run.finish()
    except Unusable as why:
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    except OSError as error:  # the folder of the report, or that of temporary files: full, read-only, gone
        print(f"gpu-check: {error}; --out DIR and TMPDIR must be folders with room to write in", file=sys.stderr)
        return 2
    if status:
        tell(f"gpu-check: exit status {status}: {WORDS[status]}")
    return status


def _parsed(prog: str, out: Path, wheels: Path | None, given: Sequence[str]) -> tuple[argparse.Namespace, list[Part]]:
    """The options, and the parts that they ask for, in order."""
    parser = argparse.ArgumentParser(prog=prog, description=SHOWS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: dry run")
    parser.add_argument("--out", type=Path, default=out, help="folder of the report; %(default)s")
    parser.add_argument("--wheels", type=Path, default=wheels, help="folder that `make gpu-wheels` filled")
    parser.add_argument("--probe", type=_file, help="a program, FILE --out JSON --budget SECONDS --only NAMES")
    parser.add_argument("--smollm2", type=_file, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("--resume", action="store_true", help="run only the parts that are not ok yet")
    parser.add_argument("--only", default="", help="parts by name, with commas between them")
    parser.add_argument("--budget", type=_positive, default=BUDGET_SECONDS, help="seconds in all; %(default)s")
    parser.add_argument("--mps-probe", type=_file, help="with --device cpu: the probe's stand-in; then MPS is one, too")
    parser.add_argument("--patience", type=_positive, default=1.0, help="factor of all limits, for a busy machine")
    options = parser.parse_args(given)
    options.out = options.out.resolve()  # the parts run elsewhere
    options.budget *= options.patience
    only = [name for name in options.only.split(",") if name]
    if unknown := set(only) - {part.name for part in PARTS}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in PARTS)}")
    absent = {name: "--probe FILE" for name in PROBE if not options.probe}
    absent |= {"exact-smollm2": "--smollm2 DIR"} if not options.smollm2 else {}
    if lacking := [name for name in only if name in absent]:
        parser.error(f"--only {lacking[0]} needs {absent[lacking[0]]}")
    wanted = [part for part in PARTS if (part.name in only if only else part.dry or options.device == "cuda")]
    return options, [part for part in wanted if part.name not in absent]


def _positive(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _file(text: str) -> Path:
    if not (path := Path(text).resolve()).exists():
        raise argparse.ArgumentTypeError(f"nothing at {text}")
    return path


def _writable(out: Path) -> None:
    """Raises OSError now, and not after the first part."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass
