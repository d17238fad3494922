"""Splits the project's dependencies into what an image layer each installs; run by the Containerfiles' `plan` stage.

`python requirements.py PYPROJECT CONSTRAINTS OUT EXTRA...` writes OUT/torch.txt and OUT/torch-constraints.txt (torch
and its own dependencies, gigabytes that change rarely), OUT/dependencies.txt (the rest) and OUT/constraints.txt. The
files carry a fixed time, so that a layer whose text is as before is found in the builder's cache.
"""

import os
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

_TORCH_CLOSURE = re.compile(
    r"(torch|triton|nvidia-(?!ml-py).*|cuda-.*|filelock|fsspec|jinja2|markupsafe|mpmath|networkx|setuptools|sympy|typing-extensions)$"
)


def package_name(requirement: str) -> str:
    """`numpy>=1.26,<3` gives `numpy`, in PyPI's normalised form."""
    found = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    if not found:
        raise ValueError(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", found[1]).lower()


def project_requirements(pyproject: str, extras: Sequence[str]) -> list[str]:
    """The project's own requirements and those of `extras`, each once, sorted."""
    project = tomllib.loads(pyproject)["project"]
    optional = project["optional-dependencies"]
    return sorted({*project["dependencies"], *(line for extra in extras for line in optional[extra])})


def pins(constraints: str) -> list[str]:
    """The pins of a constraints file without its comments."""
    lines = (line.split(" #")[0].strip() for line in constraints.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def torch_pins(constraints: str) -> list[str]:
    return [line for line in pins(constraints) if _TORCH_CLOSURE.match(package_name(line))]


def split(requirements: Iterable[str]) -> tuple[list[str], list[str]]:
    """(torch, everything else)."""
    both = list(requirements)
    return [one for one in both if package_name(one) == "torch"], [one for one in both if package_name(one) != "torch"]


def main(pyproject: Path, constraints: Path, out: Path, extras: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch, rest = split(project_requirements(pyproject.read_text(), extras))
    texts = {
        "torch.txt": torch,
        "torch-constraints.txt": torch_pins(constraints.read_text()),
        "dependencies.txt": rest,
        "constraints.txt": pins(constraints.read_text()),
    }
    for name, lines in texts.items():
        (out / name).write_text("".join(f"{line}\n" for line in lines))
        os.utime(out / name, (0, 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
