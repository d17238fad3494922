"""``make gpu-wheels``: the check in one file, and as wheels beside it the packages that it needs and an image lacks.

``python -m tests.gpu.wheels [--python 3.12] [--out out/gpu-wheels]``. A CUDA image has Python, torch, triton, numpy and
what they need; a machine with a GPU often reaches no package registry. So the rest is fetched here, in the versions
that constraints.txt pins, for the Python there, and the check itself (`archive`): ``python3 gpu-check.pyz`` is all that
is called there. ``make gpu-check WHEELS=out/gpu-wheels`` takes the folder for a clone, ``pip install --no-index
--find-links`` for anything. Needs the project's own environment: its metadata says who needs whom.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.gpu.archive import write_archive

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ("torch", "triton", "numpy")
"""What an image is for; with its dependencies it is what an image has."""
NEWER = {"typing-extensions"}
"""An image has it, but maybe not as new as others need it."""
TOOLS = ("transformers", "pytest", "pytest-asyncio")
"""The reference, and what runs the tests; beside the project's own agent and engine."""
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34, 35)] + ["manylinux2014_x86_64"]


class Closure:
    """Who needs whom, for one version of Python on Linux, by the metadata of the packages installed here."""

    def __init__(self, python: str) -> None:
        self._environment = {name: str(value) for name, value in default_environment().items()} | {
            "python_version": python,
            "python_full_version": f"{python}.0",
        }

    def of(self, roots: Iterable[str]) -> set[str]:
        """Normalised names of the roots and of all that they need."""
        found: set[str] = set()
        todo = [Requirement(root) for root in roots]
        while todo:
            requirement = todo.pop()
            name = canonicalize_name(requirement.name)
            extras = requirement.extras or {""}
            if name in found and extras == {""}:
                continue
            found.add(name)
            todo += self._needs(name, extras)
        return found

    def _needs(self, name: str, extras: set[str]) -> Iterator[Requirement]:
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # needed on that Python only
            return
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate(self._environment | {"extra": extra}) for extra in extras):
                yield requirement

    def pins(self, constraints: str) -> dict[str, str]:
        """``name==version`` of a constraints file by normalised name, for this Python."""
        lines = (line.split(" #")[0].strip() for line in constraints.splitlines() if not line.startswith("#"))
        found = {}
        for requirement in map(Requirement, filter(None, lines)):
            if requirement.marker is None or requirement.marker.evaluate(self._environment | {"extra": ""}):
                found[canonicalize_name(requirement.name)] = f"{requirement.name}{requirement.specifier}"
        return found


def missing(python: str) -> list[str]:
    """What an image of that Python lacks, as pins, sorted. Raises KeyError for a package without a pin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    closure = Closure(python)
    pins = closure.pins((ROOT / "constraints.txt").read_text())
    wanted = closure.of([*project["dependencies"], *optional["agent"], *optional["engine"], *TOOLS])
    return [pins[name] for name in sorted(wanted - (closure.of(IMAGE) - NEWER))]


def fetch(python: str, out: Path) -> list[Path]:
    """Download the wheels into the folder `out`, which holds nothing else afterwards. Raises CalledProcessError."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tag = "cp" + python.replace(".", "")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(out)]
    command += [f"--abi={abi}" for abi in (tag, "abi3", "none")] + [f"--platform={name}" for name in PLATFORMS]
    subprocess.run([*command, *missing(python)], check=True)
    return sorted(out.glob("*.whl"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.wheels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default="3.12", help="the image's version; this one's: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu-wheels", help="folder to fill")
    options = parser.parse_args()
    wheels = fetch(options.python, options.out)
    archive = write_archive(options.out)
    size = sum(wheel.stat().st_size for wheel in (*wheels, archive))
    print(
        f"{archive.name} and {len(wheels)} wheels for Python {options.python}, {size / 2**20:.0f} MiB, in {options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
